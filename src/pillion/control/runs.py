"""Puts down for how long replicas of accounts' instances were ready, on the controller's rounds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pillion.billing.runs import Begin, Sighting, record
from pillion.control.context import Control
from pillion.control.plan import spec_of
from pillion.core.money import ms
from pillion.core.replica import Replica, ReplicaStatus
from pillion.store.rows import Instance, Lease

HEARTBEAT_S = 5.0


class RunLog:
    """At every change of readiness, and every few seconds while something is ready."""

    def __init__(self, control: Control, lease: str) -> None:
        self._control = control
        self._lease = lease
        self._told: Collection[tuple[object, ...]] | None = None
        self._told_at = 0.0

    def forget(self) -> None:
        """Another control may have written meanwhile."""
        self._told = None

    async def record(
        self,
        lease: Lease,
        instances: Mapping[int, Instance],
        replicas: Iterable[Replica],
        facts: Mapping[str, ReplicaStatus],
    ) -> None:
        """Raises `LeaseLostError`."""
        own = {
            replica.id: instances[replica.instance]
            for replica in replicas
            if replica.instance in instances and _is_own(instances[replica.instance])
        }
        seen = {id: _sighting(row, facts[id]) for id, row in own.items() if id in facts}
        now = self._control.clock()
        state = {(s.replica, s.ready, s.since_ms) for s in seen.values()} | {(id,) for id in own}
        beat = any(s.ready for s in seen.values()) and now - self._told_at >= HEARTBEAT_S
        if state == self._told and not beat:
            return
        await self._write(lease, seen, own, now)
        self._told, self._told_at = state, now

    async def _write(
        self, lease: Lease, seen: Mapping[str, Sighting], present: Collection[str], now: float
    ) -> None:
        billed = self._control.settings.billing
        async with self._control.db.transaction() as tx:
            await tx.leases.check(self._lease, lease.token)
            runs = await tx.runs.open()
            new = {s.replica for s in seen.values() if s.ready} - {run.replica for run in runs}
            reach = await tx.runs.reach(new)
            plan = record(runs, seen, present, reach, ms(now), billed)
            await tx.runs.extend(plan.extend, open=True)
            await tx.runs.extend(plan.end, open=False)
            await tx.runs.begin([_row(begin, ms(now), billed) for begin in plan.begin])


def _is_own(row: Instance) -> bool:
    return row.account_id is not None and row.wanted == "running"


def _sighting(row: Instance, status: ReplicaStatus) -> Sighting:
    spec = spec_of(row)
    assert row.account_id is not None
    return Sighting(
        row.account_id,
        row.id,
        status.replica,
        status.region,
        spec.gpu_type,
        spec.gpu_count,
        status.ready,
        ms(max(status.stage_since, row.created_at)),
    )


def _row(begin: Begin, now_ms: int, billed: bool) -> dict[str, Any]:
    sighting = begin.sighting
    return {
        "account_id": sighting.account,
        "instance_id": sighting.instance,
        "replica": sighting.replica,
        "region": sighting.region,
        "gpu_type": sighting.gpu_type,
        "gpu_count": sighting.gpu_count,
        "began_ms": begin.began_ms,
        "seen_ms": max(now_ms, begin.began_ms),
        "charged_ms": begin.began_ms,
        "open": True,
        "billed": billed,
    }
