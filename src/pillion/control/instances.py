"""Instances: launch, list, stop, logs. A launch is a wish; the controller makes it true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pillion.control import billing, lookup, models, quotas
from pillion.control.context import Control
from pillion.control.events import Wanted, still_good
from pillion.control.keys import Principal
from pillion.control.merge import merge
from pillion.control.plan import spec_of
from pillion.control.views import (
    ErrorView,
    InstanceView,
    LoraView,
    Page,
    ReplicaView,
    ResidentView,
)
from pillion.core import launch as rules
from pillion.core.errors import InvalidRequestError, NotFoundError, UnavailableError
from pillion.core.launch import InstanceSpec
from pillion.core.replica import LoraSpec, Replica, ReplicaStatus
from pillion.store.rows import Instance
from pillion.store.transaction import Tx

LOOK_S = 1.0  # so long a log is followed before it is looked again who follows it


@dataclass(frozen=True)
class Launch:
    """What was asked for; None is left to Pillion."""

    model: str
    regions: list[str] | None = None
    gpu_type: str | None = None
    gpu_count: int = 1
    replicas: int | None = None
    lora: LoraSpec = field(default_factory=LoraSpec)
    engine: str | None = None
    image: str | None = None
    openai_compatible: bool = True
    custom_api_path: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


async def launch(control: Control, who: Principal, wish: Launch, home: str | None = None) -> InstanceView:
    """A new instance of the caller's, pending. `home` binds it to a region."""
    spec = await resolve(control, who, wish, home)
    async with control.db.transaction() as tx:
        view = await _view(control, tx, await create(control, tx, who, wish.model, spec))
    control.changes.notify()
    return view


async def create(control: Control, tx: Tx, who: Principal, model: str, spec: InstanceSpec) -> Instance:
    """The row of a new instance, pending, and its first hold. Raises `InsufficientBalanceError` and of quota."""
    await quotas.check_room(control, tx, who.account, "instances")
    row = await tx.instances.create(
        who.account, model=model, spec=msgspec.to_builtins(spec), now=control.clock()
    )
    await billing.open_bill(control, tx, row)
    await tx.events.append(
        who.account,
        at=control.clock(),
        kind="instance_launched",
        subject=f"instance:{row.id}",
        detail={"by": who.key, "model": model},
    )
    return row


async def resolve(control: Control, who: Principal, wish: Launch, home: str | None) -> InstanceSpec:
    """The wish with every default filled in. Raises `InvalidRequestError`, `NotFoundError`."""
    model, bound = await models.launchable(control, who, wish.model)
    if wish.image is not None:
        raise InvalidRequestError(
            "image is the operator's to allow, and none is allowed here.", param="image"
        )
    if not wish.openai_compatible or wish.custom_api_path is not None:
        # What is passed on as it is would reach an engine of ours unread, unlimited and uncounted.
        raise InvalidRequestError(
            "openai_compatible and custom_api_path are for container images, and none is allowed here.",
            param="custom_api_path" if wish.openai_compatible else "openai_compatible",
        )
    if wish.options:
        raise InvalidRequestError(
            "options are the operator's to allow, and none is allowed here.", param="options"
        )
    if bound is not None and home is not None and bound != home:
        raise InvalidRequestError(
            f"model {model.name!r} is bound to region {bound!r}, the adapter to {home!r}."
        )
    regions = {region.name: region for region in control.catalogue.regions}
    placement = rules.place(list(regions.values()), wish.regions, wish.replicas, home or bound)
    gpu_type = wish.gpu_type or rules.default_gpu(regions, placement, control.catalogue.gpu_types)
    for name in placement:
        if gpu_type not in regions[name].gpus:
            raise InvalidRequestError(
                f"region {name!r} has no GPU type {gpu_type!r}; it has: {', '.join(regions[name].gpus)}.",
                param="gpu_type",
            )
        if wish.gpu_count > regions[name].gpus[gpu_type]:
            raise InvalidRequestError(
                f"region {name!r} has {regions[name].gpus[gpu_type]} of {gpu_type!r}, not {wish.gpu_count} for one replica.",
                param="gpu_count",
            )
    return InstanceSpec(
        source=model.source,
        kind=model.kind,
        engine=wish.engine or model.engine,
        placement=placement,
        lora=rules.check_lora(wish.lora, model, control.settings.max_rank),
        gpu_type=gpu_type,
        gpu_count=wish.gpu_count,
        engine_options=dict(model.options),
        openai_compatible=wish.openai_compatible,
        custom_api_path=wish.custom_api_path,
    )


async def listing(
    control: Control, who: Principal, after: str | None, limit: int, ended: bool
) -> Page[InstanceView]:
    """The caller's own and the shared pools; those that were stopped only if asked for."""
    async with control.db.read() as tx:
        rows = await tx.instances.list(
            who.account, after=lookup.page_after(after), limit=limit + 1, pool=True, wanted=not ended
        )
        views = [await _view(control, tx, row) for row in rows[:limit]]
    return Page(views, len(rows) > limit, str(rows[limit - 1].id) if len(rows) > limit else None)


async def get(control: Control, who: Principal, id: int) -> InstanceView:
    async with control.db.read() as tx:
        return await _view(control, tx, await lookup.instance(tx, who, id))


async def stop(control: Control, who: Principal, id: int) -> InstanceView:
    """Wanted stopped from now on; its attachments end with it."""
    async with control.db.transaction() as tx:
        row = await _own(tx, who, id)
        if row.wanted == "running":
            stopped = await tx.instances.stop(row.account_id, id, control.clock(), reason="stopped_by_owner")
            assert stopped is not None
            row = stopped
            await tx.events.append(
                row.account_id,
                at=control.clock(),
                kind="instance_stop_asked",
                subject=f"instance:{id}",
                detail={"by": who.key},
            )
        view = await _view(control, tx, row)
    control.changes.notify()
    await control.controller.published()
    return view


async def logs(
    control: Control, who: Principal, id: int, replica: str | None, tail: int, follow: bool
) -> AsyncIterator[bytes]:
    """The last `tail` lines of each replica, then, if asked, what comes for as long as the caller is let in; led by the
    replica's id where there are several.
    """
    async with control.db.read() as tx:
        await _own(tx, who, id)
    replicas = [r for r in control.controller.replicas_of(id) if replica in (None, r.id)]
    if replica is not None and not replicas:
        raise NotFoundError(f"instance {id} has no replica {replica[:80]!r}.")
    named = len(replicas) > 1
    sources = [control.provisioners[r.region].logs(r.id, tail, follow=follow) for r in replicas]

    async def lines() -> AsyncIterator[bytes]:
        now = asyncio.get_running_loop().time
        looked_at = now()
        async for index, line in merge(sources):
            if follow and now() - looked_at >= LOOK_S:
                with suppress(UnavailableError):
                    async with control.db.read() as tx:
                        if not await still_good(control, tx, who):
                            return
                looked_at = now()
            prefix = f"{replicas[index].id} | " if named else ""
            yield f"{prefix}{line.rstrip()}\n".encode()

    return lines()


async def events_of(control: Control, who: Principal, id: int, newest: bool = False) -> Wanted:
    """Which events are the instance's. Raises `NotFoundError`."""
    async with control.db.read() as tx:
        await lookup.instance(tx, who, id)
    return Wanted(f"instance:{id}", newest=newest)


async def _own(tx: Tx, who: Principal, id: int) -> Instance:
    """The caller's own; for the operator also a pool. Others' are not found."""
    return await lookup.instance(tx, who, id, pool="admin" in who.scopes)


async def _view(control: Control, tx: Tx, row: Instance) -> InstanceView:
    spec = spec_of(row)
    own = row.account_id is not None
    attachments = await tx.attachments.list(row.account_id, instance_id=row.id) if row.account_id else []
    adapters = (
        {a.row_id: a for a in await tx.adapters.list(row.account_id, limit=1000)} if row.account_id else {}
    )
    lora = spec.lora
    return InstanceView(
        id=row.id,
        model=row.model,
        model_string=f"{row.model}:{row.id}",
        state=row.state,
        shared=not own,
        replicas=[
            _replica(r, control.agents.facts.get(r.id), own) for r in control.controller.replicas_of(row.id)
        ],
        lora=LoraView(
            lora.enabled, lora.max_adapters, lora.max_rank, lora.max_active or lora.slots, lora.on_demand
        ),
        gpu_type=spec.gpu_type,
        gpu_count=spec.gpu_count,
        engine=spec.engine,
        regions=dict(spec.placement),
        attachments=[
            lookup.attachment_view(a, adapters[a.adapter_row_id])
            for a in attachments
            if a.adapter_row_id in adapters
        ],
        termination_reason=row.termination_reason,
        created_at=row.created_at,
        openai_compatible=spec.openai_compatible,
        custom_api_path=spec.custom_api_path,
    )


def _replica(replica: Replica, status: ReplicaStatus | None, own: bool) -> ReplicaView:
    """On a shared pool one sees the replicas, not what others have on them."""
    if status is None:
        detail = (
            "waiting for its agent" if replica.alive else replica.exit_reason or "its agent is not running"
        )
        return ReplicaView(
            replica.id,
            replica.region,
            "starting" if replica.alive else "down",
            False,
            detail,
            None,
            0,
            [],
            {},
        )
    residents = [
        ResidentView(
            row.engine_name.partition("@")[0],
            row.state,
            row.since,
            ErrorView(row.failure.code, row.failure.message) if row.failure else None,
            row.load_ms,
        )
        for row in status.adapters
    ]
    error = ErrorView(status.failure.code, status.failure.message) if status.failure else None
    return ReplicaView(
        replica.id,
        replica.region,
        status.stage,
        status.ready,
        status.detail,
        status.stage_since,
        status.restarts,
        residents if own else [],
        status.engine,
        error,
    )
