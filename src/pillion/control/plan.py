"""From wishes and facts to what should change: pure functions, applied by `control.controller`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from pillion.core.launch import InstanceSpec
from pillion.core.names import engine_name
from pillion.core.replica import Failure, GrantEntry, GroupSpec, Replica, ReplicaStatus, Residency
from pillion.core.tiers import CAPS, Caps
from pillion.store.rows import (
    Attachment,
    AttachmentState,
    Instance,
    InstanceState,
    RoutedAdapter,
    VersionBytes,
)

HOLDING = frozenset({"loading", "loaded", "evicting"})


def spec_of(instance: Instance) -> InstanceSpec:
    return msgspec.convert(instance.spec, InstanceSpec)


def groups(instances: Iterable[Instance]) -> dict[tuple[int, str], GroupSpec]:
    """The process groups wanted: one per running instance and region."""
    return {
        (group.instance, group.region): group
        for instance in instances
        if instance.wanted == "running"
        for group in spec_of(instance).groups(instance.id, instance.model, instance.generation)
    }


def name_of(adapter: RoutedAdapter) -> str | None:
    """The engine-side name of the live version; None while there is none."""
    return engine_name(adapter.adapter.id, adapter.live.digest) if adapter.live else None


def _names(found: RoutedAdapter) -> list[str]:
    """The engine-side names of all its versions that replicas may be told to hold."""
    versions = (found.live, found.wanted, found.canary)
    return [engine_name(found.adapter.id, version.digest) for version in versions if version is not None]


def routed(adapters: Iterable[RoutedAdapter]) -> frozenset[str]:
    """The engine-side names that gateways may ask for."""
    return frozenset(
        engine_name(found.adapter.id, version.digest)
        for found in adapters
        for version in (found.live, found.canary)
        if version is not None
    )


def entries(
    region: str,
    attachments: Iterable[Attachment],
    adapters: Mapping[int, RoutedAdapter],
    flipping: Collection[int] = (),
    caps_of: Callable[[str], Caps] = lambda account: CAPS["shared"],
) -> tuple[GrantEntry, ...]:
    """What a replica in `region` is to hold, of the attachments of its instance; `caps_of` accounts.

    Of an adapter in `flipping` (row ids) also the version that is to go live.
    """
    found = []
    for attachment in attachments:
        adapter = adapters.get(attachment.adapter_row_id)
        if attachment.state == "detaching" or adapter is None or adapter.live is None:
            continue
        if adapter.adapter.region not in (None, region):
            continue
        wanted = adapter.wanted if adapter.adapter.row_id in flipping else None
        versions = {v.digest: v for v in (adapter.live, wanted, adapter.canary) if v is not None}
        caps = caps_of(attachment.account_id)
        found += [_entry(adapter.adapter.id, version, attachment, caps) for version in versions.values()]
    return tuple(sorted(found, key=lambda entry: entry.engine_name))


def _entry(adapter_id: str, version: VersionBytes, attachment: Attachment, caps: Caps) -> GrantEntry:
    return GrantEntry(
        engine_name=engine_name(adapter_id, version.digest),
        adapter_id=adapter_id,
        digest=version.digest,
        rank=version.rank,
        size_bytes=version.size_bytes,
        hold=attachment.hold,
        pinned=attachment.pinned,
        expires_at=attachment.expires_at,
        account=attachment.account_id,
        weight=caps.weight,
        reserved=caps.slots,
    )


def ended(attachments: Iterable[Attachment], now: float) -> list[Attachment]:
    """Those whose time is over and that still have to go."""
    return [
        a for a in attachments if a.expires_at is not None and a.expires_at <= now and a.state != "detaching"
    ]


def leaving(
    attachments: Iterable[Attachment],
    adapters: Mapping[int, RoutedAdapter],
    held: Iterable[Residency],
    entries: Iterable[GrantEntry],
    replaced_s: float,
) -> dict[str, float]:
    """How long what a replica has and is not to hold may drain (seconds), by engine name.

    Of an adapter that leaves, as it was asked to; other versions of one that stays have `replaced_s`.
    """
    granted = {entry.engine_name for entry in entries}
    by_id = {adapters[a.adapter_row_id].adapter.id: a for a in attachments if a.adapter_row_id in adapters}
    going = [a for a in by_id.values() if a.state == "detaching"]
    found = {name: a.drain_deadline_s for a in going for name in _names(adapters[a.adapter_row_id])}
    for row in held:
        attachment = by_id.get(row.engine_name.partition("@")[0])
        if attachment is not None and row.state in HOLDING and row.engine_name not in granted:
            found[row.engine_name] = attachment.drain_deadline_s if attachment in going else replaced_s
    return found


def strands(
    attachments: Iterable[Attachment],
    adapters: Mapping[int, RoutedAdapter],
    held: Iterable[Residency],
    entries: Iterable[GrantEntry],
) -> bool:
    """Whether these entries take a version of an adapter that stays from a replica that has it."""
    staying = [a for a in attachments if a.state != "detaching"]
    return bool(leaving(staying, adapters, held, entries, 0.0))


def instance_state(
    instance: Instance, replicas: Sequence[Replica], facts: Mapping[str, ReplicaStatus]
) -> InstanceState:
    """An instance's state from its replicas (SPEC §4)."""
    if instance.wanted == "stopped":
        return "stopping" if replicas else "stopped"
    statuses = [facts[r.id] for r in replicas if r.id in facts]
    ready = sum(status.ready for status in statuses)
    if ready >= spec_of(instance).replicas:
        return "running"
    if ready:
        return "degraded" if instance.state in ("running", "degraded") else "starting"
    if replicas and len(statuses) == len(replicas) and all(s.stage == "failed" for s in statuses):
        return "failed"
    if instance.state in ("running", "degraded"):
        return "degraded"
    return "starting" if replicas else "pending"


@dataclass(frozen=True)
class AttachmentFacts:
    """`ready` of `wanted` replicas have confirmed it. `gone`: no replica holds it any more."""

    state: AttachmentState
    ready: int
    wanted: int
    failure: Failure | None
    gone: bool


def attachment_facts(
    attachment: Attachment,
    adapter: RoutedAdapter,
    replicas: Sequence[Replica],
    facts: Mapping[str, ReplicaStatus],
    expected: int,
) -> AttachmentFacts:
    """What became of an attachment. `replicas`: those of its instance that must have it; `expected`: how many ought to be.

    Wanted are those replicas whose engine runs; before there is one, as many as there ought to be. A replica that was
    not heard may still hold it, so nothing is gone before all were. A load that was `ready` and had to make room on all
    of them is `registered`.
    """
    name = name_of(adapter)
    statuses = [facts.get(r.id) for r in replicas]
    heard = [status for status in statuses if status is not None]
    rows = [
        (s, row) for s in heard for row in s.adapters if row.engine_name.startswith(adapter.adapter.id + "@")
    ]
    live = [(s, row) for s, row in rows if row.engine_name == name]
    running = sum(status.ready for status in heard)
    ready = sum(status.ready and row.state == "loaded" for status, row in live)
    failure = next((row.failure for _, row in live if row.state == "failed" and row.failure), None)
    holding = any(row.state in HOLDING and not row.on_demand for _, row in rows)
    gone = len(heard) == len(statuses) and not holding
    wanted = running or expected
    if attachment.state == "detaching":
        return AttachmentFacts("detaching", ready, wanted, None, gone)
    evicted = sum(status.ready and row.state == "registered" for status, row in live)
    state: AttachmentState = "attaching"
    if failure:
        state = "failed"
    elif running and ready >= wanted:
        state = "ready"
    elif attachment.state in ("ready", "registered") and evicted and ready + evicted >= wanted:
        state = "ready" if ready else "registered"
    return AttachmentFacts(state, ready, wanted, failure, gone)


def asked_again(
    attachments: Iterable[Attachment], adapters: Mapping[int, RoutedAdapter], held: Iterable[Residency]
) -> set[str]:
    """Engine names that a replica let go to make room, and that were asked for again since."""
    gone = {row.engine_name for row in held if row.state == "registered"}
    asked = (adapters.get(a.adapter_row_id) for a in attachments if a.state == "attaching")
    return {name for found in asked if found is not None for name in _names(found) if name in gone}


def running_in(replicas: Iterable[Replica], facts: Mapping[str, ReplicaStatus]) -> list[ReplicaStatus]:
    """Those of them whose engine runs."""
    return [facts[r.id] for r in replicas if r.id in facts and facts[r.id].ready]


def expected_in(spec: InstanceSpec, region: str | None) -> int:
    """How many replicas of an instance must have an adapter of `region` (None: all)."""
    return spec.replicas if region is None else spec.placement.get(region, 0)


def in_region(replicas: Iterable[Replica], region: str | None) -> list[Replica]:
    return [r for r in replicas if region is None or r.region == region]
