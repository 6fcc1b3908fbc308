"""How long a virtual engine takes for what."""

from __future__ import annotations

from pathlib import Path

import msgspec


class CostsError(Exception):
    """A file of costs that cannot be read: says why."""


class EngineCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Milliseconds. A load takes `load_ms`, proof included, and `load_ms_per_mb`. A first token takes `prefill_ms` and
    `prefill_ms_per_token` of the prompt, each further one `token_ms`; both grow by `crowding` for each other request that
    runs beside. At most `max_num_seqs` run at a time, others wait; at most `loads` loads.
    """

    load_ms: float = 110.0
    load_ms_per_mb: float = 0.5
    prefill_ms: float = 20.0
    prefill_ms_per_token: float = 0.1
    token_ms: float = 15.0
    crowding: float = 0.01
    max_num_seqs: int = 64
    loads: int = 2

    def load(self, size_bytes: int) -> float:
        """Seconds."""
        return (self.load_ms + self.load_ms_per_mb * size_bytes / 1e6) / 1e3

    def first_token(self, prompt_tokens: int, beside: int) -> float:
        """Seconds."""
        return (
            (self.prefill_ms + self.prefill_ms_per_token * prompt_tokens) * (1 + self.crowding * beside) / 1e3
        )

    def rest(self, tokens: int, beside: int) -> float:
        """Seconds from the first token to the last."""
        return max(0, tokens - 1) * self.token_ms * (1 + self.crowding * beside) / 1e3


def read(path: Path) -> EngineCosts:
    """From TOML or JSON with any of the fields. Raises `CostsError`."""
    try:
        data = path.read_bytes()
        decode = msgspec.json.decode if path.suffix == ".json" else msgspec.toml.decode
        costs = decode(data, type=EngineCosts)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError, ValueError) as error:
        raise CostsError(f"{path}: {error}") from error
    wrong = [
        name
        for name in costs.__struct_fields__
        if not getattr(costs, name) >= (1 if name in ("max_num_seqs", "loads") else 0)
    ]
    if wrong:
        raise CostsError(f"{path}: {', '.join(wrong)} must not be negative, and room for one is needed")
    return costs
