"""Versions on their way to be live, and canaries: how far they are, whose turn it is, what becomes of them.

A flip is make-before-break: replicas hold the new version beside the live one until all that must have it have confirmed
it. That takes a second slot, and a full engine has one to spare, so flips wait in line and those that are in turn are the
same on all replicas: else two flips could hold a slot each that the other waits for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pillion.control.plan import expected_in, in_region, running_in, spec_of
from pillion.core.names import engine_name
from pillion.core.replica import Failure, Replica, ReplicaStatus
from pillion.store.rows import Adapter, Attachment, Instance, RoutedAdapter, VersionBytes
from pillion.store.transaction import Tx

TURN_S = 5.0  # one that keeps failing goes to the end of the line when its turn has lasted so long


@dataclass(frozen=True)
class Fleet:
    """What is wished and what is heard."""

    instances: Mapping[int, Instance]
    attachments: Sequence[Attachment]
    replicas: Sequence[Replica]
    facts: Mapping[str, ReplicaStatus]

    @cached_property
    def _places(self) -> dict[int, list[tuple[Attachment, Instance]]]:
        found = defaultdict(list)
        for attachment in self.attachments:
            instance = self.instances.get(attachment.instance_id)
            if attachment.state != "detaching" and instance is not None and instance.wanted == "running":
                found[attachment.adapter_row_id].append((attachment, instance))
        return found

    @cached_property
    def _replicas(self) -> dict[int, list[Replica]]:
        found = defaultdict(list)
        for replica in self.replicas:
            found[replica.instance].append(replica)
        return found

    def places(self, adapter: Adapter) -> list[tuple[Attachment, Instance]]:
        """Where it is to be held."""
        return self._places.get(adapter.row_id, [])

    def running(self, instance: Instance, region: str | None) -> list[ReplicaStatus]:
        """The instance's replicas whose engine runs, in a region or in all."""
        return running_in(in_region(self._replicas.get(instance.id, ()), region), self.facts)


@dataclass(frozen=True)
class Spread:
    """A version is on `ready` of the `wanted` replicas that must have it. `lasting`: the same bytes would fail again."""

    ready: int
    wanted: int
    failure: Failure | None = None
    lasting: bool = False

    @property
    def complete(self) -> bool:
        return self.ready >= self.wanted


def spread(adapter: Adapter, live: VersionBytes | None, version: VersionBytes, fleet: Fleet) -> Spread:
    """Wanted are all running replicas where the adapter is attached or pinned; where it is merely loaded, those that
    have its live version. Where no engine runs at all, as many as ought to.
    """
    name = engine_name(adapter.id, version.digest)
    before = engine_name(adapter.id, live.digest) if live else ""
    ready = wanted = asleep = 0
    failures = []
    for attachment, instance in fleet.places(adapter):
        running = fleet.running(instance, adapter.region)
        failures += [row for s in running for row in s.adapters if row.engine_name == name and row.failure]
        held = attachment.hold == "attached" or attachment.pinned
        must = [s for s in running if held or _state(s, before) in ("loading", "loaded")]
        wanted += len(must)
        ready += sum(_state(status, name) == "loaded" for status in must)
        if held and not running:
            asleep += expected_in(spec_of(instance), adapter.region)
    lasting = next((row for row in failures if row.retry_at is None), None)
    worst = lasting or next(iter(failures), None)
    return Spread(ready, wanted or asleep, worst.failure if worst else None, lasting is not None)


@dataclass(frozen=True)
class Flip:
    """A version that is to be live, or a canary. `in_turn`: replicas are to hold it now."""

    adapter: RoutedAdapter
    version: VersionBytes
    canary: bool
    in_turn: bool
    spread: Spread

    @property
    def engine_name(self) -> str:
        return engine_name(self.adapter.adapter.id, self.version.digest)

    @property
    def failed(self) -> bool:
        return self.spread.lasting

    @property
    def made(self) -> bool:
        return not self.canary and self.in_turn and not self.failed and self.spread.complete


def look(adapters: Iterable[RoutedAdapter], fleet: Fleet) -> list[Flip]:
    """Those of these adapters: canaries, and what is to go live in the order of the line."""
    moving = list(adapters)
    found = [
        Flip(
            adapter, adapter.canary, True, True, spread(adapter.adapter, adapter.live, adapter.canary, fleet)
        )
        for adapter in moving
        if adapter.canary is not None
    ]
    line = sorted((a for a in moving if a.wanted is not None), key=_place_in_line)
    turns = _turns(line, fleet, [flip.adapter.adapter for flip in found])
    for adapter in line:
        assert adapter.wanted is not None
        how = spread(adapter.adapter, adapter.live, adapter.wanted, fleet)
        found.append(Flip(adapter, adapter.wanted, False, adapter.adapter.row_id in turns, how))
    return found


def in_turn(flips: Iterable[Flip]) -> frozenset[int]:
    """The adapters (row ids) whose next version replicas are to hold."""
    return frozenset(flip.adapter.adapter.row_id for flip in flips if flip.in_turn and not flip.canary)


def stuck(flips: Sequence[Flip], now: float) -> list[Flip]:
    """Those in turn that keep failing while others wait."""
    if all(flip.in_turn for flip in flips):
        return []
    return [
        flip
        for flip in flips
        if flip.in_turn
        and not flip.canary
        and flip.spread.failure is not None
        and now - (flip.adapter.adapter.wanted_at or 0.0) >= TURN_S
    ]


async def settle(tx: Tx, flip: Flip, now: float) -> bool:
    """Go live, or be given up. What changed since the wishes were read is left for the next look."""
    row = await tx.adapters.lock(flip.adapter.adapter.account_id, flip.adapter.adapter.row_id)
    version = flip.version.version
    if row is None or version != (row.canary_version if flip.canary else row.wanted_version):
        return False
    if flip.made:
        await live(tx, row, version, now)
        return True
    failure = flip.spread.failure
    assert failure is not None
    if flip.canary:
        await tx.adapters.set_canary(row.account_id, row.row_id, None, None)
    else:
        await tx.adapters.want(row.account_id, row.row_id, None, now)
    await tx.versions.failed(row.account_id, row.row_id, version, failure)
    kind = "canary_failed" if flip.canary else "version_failed"
    await _event(tx, row, kind, {"version": version, "code": failure.code, "error": failure.message}, now)
    return True


async def requeue(tx: Tx, flip: Flip, now: float) -> None:
    """To the end of the line."""
    row = await tx.adapters.lock(flip.adapter.adapter.account_id, flip.adapter.adapter.row_id)
    if row is not None and row.wanted_version == flip.version.version:
        await tx.adapters.want(row.account_id, row.row_id, row.wanted_version, now)


async def live(tx: Tx, row: Adapter, version: int, now: float) -> Adapter:
    """From the commit of `tx` on it is the live version."""
    after = await tx.adapters.set_live(row.account_id, row.row_id, version)
    assert after is not None
    await tx.versions.went_live(row.account_id, row.row_id, version, now)
    await _event(tx, row, "version_live", {"version": version, "before": row.live_version}, now)
    return after


def _place_in_line(adapter: RoutedAdapter) -> tuple[float, int]:
    return adapter.adapter.wanted_at or 0.0, adapter.adapter.row_id


def _turns(line: Sequence[RoutedAdapter], fleet: Fleet, canaries: Iterable[Adapter]) -> set[int]:
    """The adapters (row ids) whose turn it is: the first always, others where all their instances have slots to spare:
    those that nothing attached or loaded there takes, at least the surge slot.

    Only instances that run count, so that one that is down holds up nobody elsewhere.
    """
    taken = Counter(attachment.instance_id for attachment in fleet.attachments)
    for adapter in canaries:
        taken.update(instance.id for _, instance in fleet.places(adapter))
    spare: dict[int, int] = {}
    turns = set()
    for routed in line:
        if routed.wanted == routed.canary:
            turns.add(routed.adapter.row_id)  # it has its slot
            continue
        running = [i for _, i in fleet.places(routed.adapter) if fleet.running(i, routed.adapter.region)]
        for instance in running:
            spare.setdefault(instance.id, max(1, spec_of(instance).lora.slots - taken[instance.id]))
        if all(spare[instance.id] > 0 for instance in running):
            turns.add(routed.adapter.row_id)
            for instance in running:
                spare[instance.id] -= 1
    return turns


def _state(status: ReplicaStatus, name: str) -> str:
    return next((row.state for row in status.adapters if row.engine_name == name), "")


async def _event(tx: Tx, row: Adapter, kind: str, detail: Mapping[str, object], now: float) -> None:
    await tx.events.append(row.account_id, at=now, kind=kind, subject=f"adapter:{row.id}", detail=detail)
