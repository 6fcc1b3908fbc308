"""What gateways tell control of the requests they served (SPEC §5): events with a key of (spool, sequence).

Travels as msgpack. Times are seconds since the epoch, durations milliseconds.
"""

from __future__ import annotations

import msgspec

LOST = "lost"


class Used(msgspec.Struct, frozen=True, array_like=True, tag="used"):
    """One request. `status` is the HTTP status as text, or `lost`: its gateway died. Tokens that no engine told are None.

    `model` is as the client wrote it. `ttft_ms` is None where no byte was answered.
    """

    seq: int
    at: float
    account: str
    key: str
    adapter: str | None
    version: int | None
    model: str
    base: str
    instance: int
    replica: str
    region: str
    request_id: str
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    status: str
    ttft_ms: float | None
    duration_ms: float
    cold: bool


# So long a gateway refuses a version of an adapter that two replicas died with.
QUARANTINE_S = 60.0


QUARANTINED = "adapter_quarantined"


class Incident(msgspec.Struct, frozen=True, array_like=True, tag="incident"):
    """Something the account should hear of, as an event of `adapter`. `engine_name`: of the version it was."""

    seq: int
    at: float
    kind: str
    account: str
    adapter: str | None
    detail: str
    engine_name: str | None = None


Told = Used | Incident


class Report(msgspec.Struct, frozen=True):
    """Events of one spool in the order of their sequence, without a gap. `oldest`: the first the spool still has."""

    spool: str
    oldest: int
    told: tuple[Told, ...]


class Mark(msgspec.Struct, frozen=True):
    """The highest sequence that control has of this spool; 0 for none."""

    mark: int


class Demand(msgspec.Struct, frozen=True):
    """Requests and tokens by key that a gateway saw in the last interval, of keys that are limited."""

    gateway: str
    requests: dict[str, float]
    tokens: dict[str, float]


class Shares(msgspec.Struct, frozen=True):
    """The part of each key's limits that is this gateway's, in (0, 1]."""

    requests: dict[str, float]
    tokens: dict[str, float]
