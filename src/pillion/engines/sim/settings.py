"""What the simulated engine is told: how fast it is, how much it holds, what goes wrong."""

from __future__ import annotations

from typing import Annotated

import msgspec

_NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes wrong from now on. Changed while it runs by `POST /sim/faults`.

    `crash`: dies at once, as by SIGKILL. `crash_on`: dies when a prompt contains this. `hang`: nothing
    answers until that is over, health included. `refuse_load`, `ineffective`: adapters whose name contains this are
    refused, or are loaded and change nothing ("" for none, "*" for all). `slow`: all times, times this.
    """

    crash: bool = False
    crash_on: str = ""
    hang: bool = False
    refuse_load: str = ""
    ineffective: str = ""
    slow: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class SimOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`engine_options` of the sim. `tokens_per_s` is each stream's rate; 0 is at once.

    `slots` overrides the launch's. `default_tokens`: how long an answer is when the client does not say.
    `max_num_seqs`: how many requests run at a time; more wait.
    """

    ttft_ms: _NotNegative = 0.0
    tokens_per_s: _NotNegative = 0.0
    load_ms_per_mb: _NotNegative = 0.0
    start_up_s: _NotNegative = 0.0
    slots: _Positive | None = None
    default_tokens: _Positive = 16
    max_model_len: _Positive = 32768
    max_num_seqs: _Positive = 1024
    faults: Faults = Faults()


class SimConfig(msgspec.Struct, frozen=True):
    """One simulated engine: the base's served name, its directory (None: no shapes are checked), its caps."""

    base: str
    model_dir: str | None
    infer_key: str
    agent_key: str
    slots: int = 17
    max_rank: int = 64
    options: SimOptions = SimOptions()


def names(pattern: str, name: str) -> bool:
    """Whether a fault's pattern means this adapter."""
    return bool(pattern) and (pattern == "*" or pattern in name)
