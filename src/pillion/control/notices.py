"""What the controller notices of replicas, put down as events: that they come, go, die, are ready, start again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pillion.control.context import Control
from pillion.core.replica import Failure, Replica, ReplicaStatus
from pillion.store.rows import Instance, Lease

DOWN = ("restarting", "failed")


@dataclass(frozen=True)
class Life:
    """A replica as it was last seen. What its agent said is kept while the agent is silent."""

    instance: int
    region: str
    alive: bool
    exit_reason: str | None
    status: ReplicaStatus | None


@dataclass(frozen=True)
class Notice:
    kind: str
    instance: int
    detail: dict[str, object] = field(default_factory=dict)


def seen(
    replicas: Iterable[Replica], facts: Mapping[str, ReplicaStatus], before: Mapping[str, Life]
) -> dict[str, Life]:
    """By id."""
    lives = {}
    for replica in replicas:
        last = before.get(replica.id)
        status = facts.get(replica.id) or (last.status if last is not None else None)
        lives[replica.id] = Life(replica.instance, replica.region, replica.alive, replica.exit_reason, status)
    return lives


def noticed(before: Mapping[str, Life], now: Mapping[str, Life]) -> Iterator[Notice]:
    """What has happened in between."""
    for id, life in now.items():
        where: dict[str, object] = {"replica": id, "region": life.region}
        last = before.get(id)
        if last is None:
            yield Notice("replica_added", life.instance, where)
        elif last.alive and not life.alive:
            yield Notice("agent_down", life.instance, where | _because(life.exit_reason))
        yield from _of_status(last.status if last is not None else None, life, where)
    for id, gone in before.items():
        if id not in now:
            yield Notice("replica_removed", gone.instance, {"replica": id, "region": gone.region})


def _of_status(before: ReplicaStatus | None, life: Life, where: dict[str, object]) -> Iterator[Notice]:
    now = life.status
    if now is None or now == before:
        return
    if before is not None and before.agent_epoch != now.agent_epoch:
        yield Notice("agent_restarted", life.instance, where)
    stage = before.stage if before is not None else None
    fell = before is not None and (before.restarts < now.restarts and before.agent_epoch == now.agent_epoch)
    if now.stage in DOWN and (stage != now.stage or fell):
        kind = "engine_failed" if now.stage == "failed" else "engine_down"
        yield Notice(kind, life.instance, where | _because(_words(now.failure)))
    elif fell:  # down, and up again since it was looked at
        yield Notice("engine_down", life.instance, where | {"restarts": now.restarts})
    if now.ready and (before is None or not before.ready):
        yield Notice("replica_ready", life.instance, where | {"restarts": now.restarts})


class Notices:
    """For the controller's rounds. What happened before the first one is not known, and not told."""

    def __init__(self, control: Control, lease: str) -> None:
        self._control = control
        self._lease = lease
        self._last: dict[str, Life] | None = None

    def forget(self) -> None:
        """Another control may have told meanwhile."""
        self._last = None

    async def record(
        self,
        lease: Lease,
        instances: Mapping[int, Instance],
        replicas: Iterable[Replica],
        facts: Mapping[str, ReplicaStatus],
    ) -> None:
        """Raises `LeaseLostError`. Of instances that are forgotten nothing is told."""
        now = seen(replicas, facts, self._last or {})
        told = (
            [n for n in noticed(self._last, now) if n.instance in instances] if self._last is not None else []
        )
        if told:
            at = self._control.clock()
            async with self._control.db.transaction() as tx:
                await tx.leases.check(self._lease, lease.token)
                for notice in told:
                    owner = instances[notice.instance].account_id
                    subject = f"instance:{notice.instance}"
                    await tx.events.append(
                        owner, at=at, kind=notice.kind, subject=subject, detail=notice.detail
                    )
        self._last = now


def _words(failure: Failure | None) -> str | None:
    return f"{failure.message} ({failure.code})" if failure is not None else None


def _because(reason: str | None) -> dict[str, object]:
    return {"error": reason} if reason else {}
