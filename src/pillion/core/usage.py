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


class Taken(msgspec.Struct, frozen=True):
    """Of one `limit` (per minute) of a key, at one gateway: what was `asked` of it and what `taken` since it was last told,
    and what is `left` there.
    """

    asked: float
    taken: float
    limit: int
    left: float


class Demand(msgspec.Struct, frozen=True):
    """Requests and tokens by key, of keys that are limited and were used at a gateway since it last told."""

    gateway: str
    requests: dict[str, Taken]
    tokens: dict[str, Taken]


class Share(msgspec.Struct, frozen=True):
    """The `part` of a limit that is a gateway's, in (0, 1], and what is `left` of the whole: below 0 where all together
    took more.
    """

    part: float
    left: float


class Shares(msgspec.Struct, frozen=True):
    """One gateway's, by key."""

    requests: dict[str, Share]
    tokens: dict[str, Share]
