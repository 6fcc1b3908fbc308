"""What one replica has of an adapter: in which state, since when, why it does not serve it, and what happens next. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from pillion.core.replica import Replica, ReplicaStatus, Residency
from pillion.core.residency import OCCUPYING

WHEN_READY = "it is loaded when the engine is ready, before it gets traffic"


@dataclass(frozen=True)
class Where:
    """What is to be explained. `wanted`: the replica must have it, on demand it may. `live`: what it is called there.

    `drain_s`: how long requests in flight may take when it leaves. `slots`: all that the engine has.
    """

    versions: Mapping[str, int]
    adapter_id: str
    live: str | None
    wanted: bool
    drain_s: float | None
    slots: int
    now: float


@dataclass(frozen=True)
class ReplicaExplained:
    """`state` is the residency's (SPEC §4). `difference`: how far its log-probabilities are from the base's, at most;
    `noise`: how far the base's own are from each other (nats).
    """

    replica: str
    region: str
    state: str
    serving: bool
    version: int | None = None
    since: float | None = None
    load_ms: float | None = None
    last_used: float | None = None
    difference: float | None = None
    noise: float | None = None
    retry_at: float | None = None
    why_not: str | None = None
    next: str | None = None


def explain_replica(
    replica: Replica, status: ReplicaStatus | None, where: Where, retry_at: float | None
) -> ReplicaExplained:
    """`retry_at`: when its provisioner tries again to start what is down."""
    row = _row(status, where)
    down = _down(replica, status, where, retry_at)
    if down is not None or row is None or status is None:
        why_not, following = down or _absent(status, where)
        state = row.state if row is not None else "registered"
        return ReplicaExplained(
            replica.id, replica.region, state, False, retry_at=retry_at, why_not=why_not, next=following
        )
    why_not, following = _of_row(row, where)
    if status.detail and following is None:  # it misses probes
        following = f"{status.detail}; at the last its agent ends the engine and starts it again"
    return ReplicaExplained(
        replica.id,
        replica.region,
        row.state,
        serving=row.state == "loaded" and row.engine_name == where.live,
        version=where.versions.get(row.engine_name.partition("@")[2]),
        since=row.since,
        load_ms=row.load_ms,
        last_used=row.last_used,
        difference=row.proof.difference if row.proof else None,
        noise=row.proof.noise if row.proof else None,
        retry_at=row.retry_at,
        why_not=why_not,
        next=following,
    )


def _row(status: ReplicaStatus | None, where: Where) -> Residency | None:
    """The live version's, else that of another version that is still there."""
    rows = (
        [row for row in status.adapters if row.engine_name.startswith(where.adapter_id + "@")]
        if status
        else []
    )
    live = [row for row in rows if row.engine_name == where.live]
    occupying = [row for row in rows if row.state in OCCUPYING]
    return next(iter([*live, *occupying, *rows]), None)


def _down(
    replica: Replica, status: ReplicaStatus | None, where: Where, retry_at: float | None
) -> tuple[str, str | None] | None:
    """Why nothing is served there at all; None where its engine runs."""
    following = WHEN_READY if where.wanted else None
    if not replica.alive:
        again = (
            f"it is started again at {utc(retry_at)}"
            if retry_at and retry_at > where.now
            else "it is started again"
        )
        return f"its agent is not running{_because(replica.exit_reason)}", f"{again}; {WHEN_READY}"
    if status is None:
        return "its agent has not been heard yet", "it is asked again and again"
    if status.ready:
        return None
    failure = status.failure
    said = f"{failure.message} ({failure.code})" if failure else status.detail
    if status.stage == "failed":
        return f"its engine does not come up{_because(said)}", f"its agent goes on trying; {WHEN_READY}"
    if status.stage == "restarting":
        return f"its engine went down{_because(said)}", f"its agent starts it again; {WHEN_READY}"
    return f"its engine is {status.stage}{_because(status.detail)}", following


def _absent(status: ReplicaStatus | None, where: Where) -> tuple[str | None, str | None]:
    """The engine runs and does not have it."""
    taken = sum(row.state in OCCUPYING for row in status.adapters) if status is not None else 0
    full = taken >= where.slots - 1  # the last slot is for flips
    if not where.wanted:
        return "it is not loaded here", None
    if full:
        return (
            f"no slot is free: {taken} of {where.slots - 1} are taken",
            "it is loaded as soon as one is free",
        )
    return "it is not loaded yet", "its agent loads it next"


def _of_row(row: Residency, where: Where) -> tuple[str | None, str | None]:
    if row.state == "failed":
        failure = row.failure
        why = f"it failed to load{_because(f'{failure.message} ({failure.code})' if failure else '')}"
        if row.retry_at is not None:
            return why, f"its agent tries again at {utc(row.retry_at)}"
        return why, "it would fail again: it is tried anew when it is asked for again"
    if row.state == "loading":
        return (
            f"it is being loaded since {utc(row.since)}",
            "it is proved to have an effect, then it is served",
        )
    if row.state == "evicting":
        limit = f" for up to {where.drain_s:g} s" if where.drain_s is not None else ""
        return "new requests are refused, it is leaving", f"those in flight go on{limit}; then it is unloaded"
    if row.state == "registered":
        return _absent(None, where)
    if row.engine_name != where.live:
        return "another version is loaded than the live one", "the live version is loaded beside it"
    return None, None


def _because(said: str | None) -> str:
    return f": {said}" if said else ""


def utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))
