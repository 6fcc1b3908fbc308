"""Why an adapter is served where it is, and why it is not where it is not: wishes and facts, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pillion.control.explain_replica import ReplicaExplained, Where, explain_replica, utc
from pillion.control.flips import Spread
from pillion.control.plan import expected_in, in_region, spec_of
from pillion.core.names import engine_name
from pillion.core.replica import Replica, ReplicaStatus
from pillion.store.rows import Adapter, Attachment, Instance

Wish = Literal["attached", "pinned", "loaded", "on_demand", "none"]


@dataclass(frozen=True)
class Known:
    """All that is known of one adapter. `instances`: those it is wished on, is on, or could be on.

    `versions`: its versions' numbers by digest. `why_not`: by instance, why that one cannot take it at all.
    `held`: by instance, how many slots are held by what is attached or pinned. `tries`: by instance and region, when the
    provisioner tries again (seconds since the epoch). `coming`, `canary`: how far the version is that is to be live, that is
    tried; `setback`: why the newest one is not. `refused_until`: when gateways that have it in quarantine ask for it again.
    """

    adapter: Adapter
    aliases: Sequence[str]
    versions: Mapping[str, int]
    attachments: Sequence[Attachment]
    instances: Mapping[int, Instance]
    why_not: Mapping[int, Sequence[str]]
    held: Mapping[int, int]
    replicas: Sequence[Replica]
    facts: Mapping[str, ReplicaStatus]
    tries: Mapping[tuple[int, str], float]
    now: float
    coming: Spread | None = None
    canary: Spread | None = None
    setback: str | None = None
    refused_until: float | None = None


@dataclass(frozen=True)
class PlaceExplained:
    """An instance where the adapter should be, may be, or still is. `serving` of `wanted` replicas serve it now.

    `since`: when it was asked for. `why_not` and `next` are of the whole place; its replicas have their own.
    """

    instance_id: int
    model: str
    instance_state: str
    wish: Wish
    state: str | None
    serving: int
    wanted: int
    since: float | None
    expires_at: float | None
    session_key: str | None
    replicas: list[ReplicaExplained]
    why_not: list[str]
    next: list[str]


@dataclass(frozen=True)
class Explanation:
    """Where an adapter should be, where it is, why not, and what happens next. Times are seconds since the epoch."""

    adapter_id: str
    row_id: int
    name: str
    aliases: list[str]
    base_model: str
    region: str | None
    version: int | None
    wanted_version: int | None
    canary_version: int | None
    served: bool
    summary: str
    places: list[PlaceExplained]
    why_not: list[str]
    next: list[str]
    object: Literal["explanation"] = "explanation"


def explain(known: Known) -> Explanation:
    adapter = known.adapter
    places = _places(known)
    why_not, following = _of_itself(known, places)
    following += _of_versions(known)
    serving, wanted = sum(p.serving for p in places), sum(p.wanted for p in places)
    return Explanation(
        adapter.id,
        adapter.row_id,
        adapter.name,
        list(known.aliases),
        adapter.base_model,
        adapter.region,
        adapter.live_version,
        adapter.wanted_version,
        adapter.canary_version,
        serving > 0 and known.refused_until is None,
        _summary(known, places, serving, wanted, why_not),
        places,
        why_not,
        following,
    )


def _places(known: Known) -> list[PlaceExplained]:
    """Where it is wished, then where a request may load it, then where it is all the same."""
    wished = [_wished(known, row) for row in known.attachments if row.instance_id in known.instances]
    there = {row.instance_id for row in known.attachments}
    others = []
    for instance in sorted(known.instances.values(), key=lambda i: i.id):
        if instance.id in there:
            continue
        lora = spec_of(instance).lora
        if lora.enabled and lora.on_demand and not known.why_not.get(instance.id, ("",)):
            others.append(_place(known, instance, None, "on_demand"))
        elif any(_holds(known, replica) for replica in _replicas(known, instance)):
            others.append(_place(known, instance, None, "none"))
    return wished + sorted(others, key=lambda place: place.wish == "none")


def _wished(known: Known, row: Attachment) -> PlaceExplained:
    wish: Wish = "attached" if row.hold == "attached" else "pinned" if row.pinned else "loaded"
    return _place(known, known.instances[row.instance_id], row, wish)


def _place(known: Known, instance: Instance, row: Attachment | None, wish: Wish) -> PlaceExplained:
    leaves = wish == "none" or (row is not None and (row.state == "detaching" or _over(row, known.now)))
    live = _live(known)
    where = Where(
        versions=known.versions,
        adapter_id=known.adapter.id,
        live=live,
        wanted=wish != "on_demand" and not leaves,
        drain_s=row.drain_deadline_s if row is not None else None,
        slots=spec_of(instance).lora.slots,
        now=known.now,
    )
    replicas = [
        explain_replica(r, known.facts.get(r.id), where, known.tries.get((instance.id, r.region)))
        for r in _replicas(known, instance)
    ]
    why_not, following = _of_place(known, instance, row, wish)
    return PlaceExplained(
        instance_id=instance.id,
        model=instance.model,
        instance_state=instance.state,
        wish=wish,
        state=row.state if row is not None else None,
        serving=0 if leaves else sum(replica.serving for replica in replicas),
        wanted=0 if leaves else max(len(replicas), expected_in(spec_of(instance), known.adapter.region)),
        since=row.created_at if row is not None else None,
        expires_at=row.expires_at if row is not None else None,
        session_key=row.session_key if row is not None else None,
        replicas=replicas,
        why_not=why_not,
        next=following,
    )


def _of_place(
    known: Known, instance: Instance, row: Attachment | None, wish: Wish
) -> tuple[list[str], list[str]]:
    """What stands in the way at the instance as a whole, and what happens there next."""
    ends = _ending(known, instance, row, wish)
    if ends is not None:
        return ends
    why_not, following = [], []
    spec, region = spec_of(instance), known.adapter.region
    if not expected_in(spec, region):
        why_not.append(f"instance {instance.id} has no replica in {region}, to which the adapter is bound")
    elif not _replicas(known, instance):
        why_not.append(f"instance {instance.id} is {instance.state}: it has no replica yet")
        following.append(
            _tries(known, instance) or "its replicas are being started; it is loaded when one is ready"
        )
    if row is not None and row.state == "failed" and row.error_message:
        why_not.append(f"it failed: {row.error_message} ({row.error_code})")
    if row is not None and row.replaces is not None:
        following.append(f"once it is served here, instance {row.replaces} lets it go")
    if row is not None and row.expires_at is not None:
        following.append(f"its time ends at {utc(row.expires_at)}; then it is unloaded")
    if wish == "on_demand" and known.adapter.ended_at is not None and known.adapter.ended_at <= known.now:
        why_not.append(f"its time was over at {utc(known.adapter.ended_at)}")
        following.append("it is served again once it is loaded anew")
    elif wish == "on_demand":
        held, slots = known.held.get(instance.id, 0), spec.lora.max_adapters
        if held >= slots:
            why_not.append(
                f"all {slots} slots are held by what is attached or pinned: a request finds no room"
            )
        else:
            following.append("a request for it loads it where it is not")
    return why_not, following


def _ending(
    known: Known, instance: Instance, row: Attachment | None, wish: Wish
) -> tuple[list[str], list[str]] | None:
    """The same of a place that it leaves; None where it does not."""
    if instance.wanted != "running":
        reason = f" ({instance.termination_reason})" if instance.termination_reason else ""
        return [f"instance {instance.id} is {instance.state}{reason}"], ["its attachments end with it"]
    if wish == "none":
        return ["nothing asks for it here"], ["it is unloaded"]
    if row is not None and _over(row, known.now):
        assert row.expires_at is not None
        return [f"its time was over at {utc(row.expires_at)}"], ["it is unloaded; load it anew to serve it"]
    if row is not None and row.state == "detaching":
        told = f"requests in flight have up to {row.drain_deadline_s:g} s; then it is unloaded and its slot is free"
        return ["it is being detached"], [told]
    return None


def _of_itself(known: Known, places: Sequence[PlaceExplained]) -> tuple[list[str], list[str]]:
    """What stands in the way wherever it should be, and what its owner can do."""
    adapter = known.adapter
    if adapter.live_version is None:
        how = "its import is under way" if adapter.state == "importing" else "no bytes have come"
        return [f"it has no version that could be served: {how}"], ["GET /v1/jobs shows how far it is"]
    if known.refused_until is not None:
        told = "two replicas died while they had a request for it: it is refused where that was seen"
        return [told], [f"that ends at {utc(known.refused_until)}; another version is not refused"]
    if any(place.wish != "none" for place in places):
        return [], []
    able = [id for id, reasons in sorted(known.why_not.items()) if not reasons]
    room = [id for id in able if known.held.get(id, 0) < spec_of(known.instances[id]).lora.max_adapters]
    why_not = ["it is attached to no instance, loaded on none, and none loads it on demand"]
    if room:
        which = ", ".join(str(id) for id in room[:5])
        return why_not, [f"attach it to an instance that can take it: {which}"]
    if able:
        which = ", ".join(str(id) for id in able[:5])
        return why_not, [f"detach or unpin something: instance {which} could take it and is full"]
    why_not += [f"instance {id}: {'; '.join(reasons)}" for id, reasons in sorted(known.why_not.items())[:5]]
    where = f" in {adapter.region}" if adapter.region is not None else ""
    return why_not, [f"launch an instance of {adapter.base_model} with LoRA{where}, and attach it there"]


def _of_versions(known: Known) -> list[str]:
    """What becomes of versions that are not live."""
    adapter, coming, said = known.adapter, known.coming, []
    if coming is not None:
        how = f"{coming.ready} of {coming.wanted} replicas have it"
        trouble = f"; {coming.failure.message} ({coming.failure.code})" if coming.failure is not None else ""
        said.append(
            f"version {adapter.wanted_version} goes live once all that must have it do: {how}{trouble}"
        )
    if adapter.canary_version is not None:
        tried = known.canary
        where = f" where it is, on {tried.ready} of {tried.wanted} replicas" if tried is not None else ""
        trouble = f"; {tried.failure.message} ({tried.failure.code})" if tried and tried.failure else ""
        share = f"{(adapter.canary_share or 0):.0%}"
        said.append(f"version {adapter.canary_version} gets {share} of the requests{where}{trouble}")
    if known.setback is not None:
        said.append(known.setback)
    return said


def _summary(
    known: Known, places: Sequence[PlaceExplained], serving: int, wanted: int, why_not: Sequence[str]
) -> str:
    adapter = known.adapter
    if serving and known.refused_until is not None:
        return f"{adapter.name} is on {serving} of {wanted} replicas, and not served: {why_not[0]}."
    if serving:
        return f"{adapter.name} is served by {serving} of {wanted} replicas."
    if not why_not and any(place.wish == "on_demand" and not place.why_not for place in places):
        return f"{adapter.name} is on no replica now; a request for it loads it."
    reasons = [*why_not]
    for place in places:
        reasons += place.why_not
        reasons += [r.why_not for r in place.replicas if r.why_not]
    return f"{adapter.name} is not served: {reasons[0] if reasons else 'no replica has it'}."


def _live(known: Known) -> str | None:
    """The engine-side name of what is served."""
    version = known.adapter.live_version
    found = [digest for digest, number in known.versions.items() if number == version]
    return engine_name(known.adapter.id, found[-1]) if found else None


def _replicas(known: Known, instance: Instance) -> list[Replica]:
    """Those of the instance that must or may have it."""
    here = [replica for replica in known.replicas if replica.instance == instance.id]
    return sorted(in_region(here, known.adapter.region), key=lambda replica: (replica.region, replica.id))


def _holds(known: Known, replica: Replica) -> bool:
    status = known.facts.get(replica.id)
    prefix = known.adapter.id + "@"
    return status is not None and any(
        row.engine_name.startswith(prefix) and row.state in ("loading", "loaded", "evicting")
        for row in status.adapters
    )


def _tries(known: Known, instance: Instance) -> str | None:
    at = [when for (id, _), when in known.tries.items() if id == instance.id and when > known.now]
    return f"starting its replicas failed; it is tried again at {utc(min(at))}" if at else None


def _over(row: Attachment, now: float) -> bool:
    return row.expires_at is not None and row.expires_at <= now
