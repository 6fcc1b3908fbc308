"""Versions of an adapter: added, made live, taken back, and tried on a share of the requests (SPEC §3).

What is asked for here is a wish; `control.flips` says what becomes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pillion.artifacts.receive import Stored
from pillion.control import attachments, flips, lookup
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.plan import spec_of
from pillion.control.views import ErrorView, Page, VersionView
from pillion.core.errors import ConflictError, InvalidRequestError, NotFoundError
from pillion.store.rows import Adapter, AdapterVersion, Attachment, VersionBytes
from pillion.store.transaction import Tx

LIVE_WAIT_S = 5.0
GATEWAYS_S = 0.5  # how long a reader waits for gateways: one that hangs holds nobody up


async def listing(control: Control, who: Principal, ref: str) -> Page[VersionView]:
    """Oldest first. Who sees that a version is live may call it at once: gateways know before this answers."""
    async with control.db.read() as tx:
        row = await lookup.adapter(tx, who, ref)
        page = Page(
            [await _view(control, tx, row, v) for v in await tx.versions.list(who.account, row.row_id)]
        )
    await control.gateways.acknowledged(await control.controller.publish(), GATEWAYS_S)
    return page


async def add(
    control: Control,
    tx: Tx,
    who: Principal,
    row: Adapter,
    stored: Stored,
    source: Mapping[str, Any],
    live: bool,
) -> tuple[VersionView, bool]:
    """The version of these bytes, and whether it is new. It is to go live unless told otherwise.

    Raises `InvalidRequestError` where an instance that has the adapter could not take it.
    """
    row = await _locked(tx, who, row)
    there = await tx.versions.by_digest(who.account, row.row_id, stored.digest)
    version = there or await tx.versions.add(
        row.account_id,
        row.row_id,
        digest=stored.digest,
        rank=stored.verified.rank,
        alpha=float(stored.verified.alpha),
        target_modules=stored.verified.target_modules,
        size_bytes=stored.size_bytes,
        warnings=stored.verified.warnings,
        source=source,
        now=control.clock(),
    )
    if there is None:
        await _event(control, tx, who, row, "version_added", {"version": version.version})
    if live:
        row = await _want(control, tx, who, row, version, "live_asked")
    same = f"these are the bytes of version {version.version}, so no new version was made"
    return await _view(control, tx, row, version, warnings=[same] if there else []), there is None


async def go_live(control: Control, who: Principal, ref: str, number: int) -> tuple[VersionView, bool]:
    """The version, and whether it is live and every gateway knows. Else it goes live once replicas have it.

    Raises `NotFoundError`, `InvalidRequestError`.
    """
    async with control.db.transaction() as tx:
        row = await _locked(tx, who, await lookup.adapter(tx, who, ref))
        version = await _version(tx, row, number)
        await _want(control, tx, who, row, version, "live_asked")
    return await _followed(control, who, row, number)


async def rollback(control: Control, who: Principal, ref: str) -> tuple[VersionView, bool]:
    """Back to the version that was live before; where another is going live, that is called off instead.

    Raises `ConflictError` where there was none before.
    """
    async with control.db.transaction() as tx:
        row = await _locked(tx, who, await lookup.adapter(tx, who, ref))
        number = row.live_version if row.wanted_version is not None else row.previous_version
        if number is None:
            raise ConflictError(f"adapter {row.name!r} has no version that was live before this one.")
        version = await _version(tx, row, number)
        await _want(control, tx, who, row, version, "rollback_asked")
    return await _followed(control, who, row, number)


async def set_canary(
    control: Control, who: Principal, ref: str, number: int, share: float
) -> tuple[VersionView, bool]:
    """`share` (0..1) of the requests go to this version where it is resident; whether all replicas have it already.

    Raises `NotFoundError`, `InvalidRequestError`, `ConflictError`, `InstanceAtCapacityError`.
    """
    async with control.db.transaction() as tx:
        row = await lookup.adapter(tx, who, ref)
        uses = await _hold_instances(tx, who, row)
        row = await _locked(tx, who, row)
        version = await _version(tx, row, number)
        if {use.id for use in uses} != {use.id for use in await _uses(tx, row)}:
            raise ConflictError(f"adapter {row.name!r} was attached or detached meanwhile; try again.")
        _check_canary(row, number, uses)
        await _check_rank(tx, who, row, version, uses)
        for use in uses if row.canary_version is None else ():
            instance = await lookup.instance(tx, who, use.instance_id)
            await attachments.make_room(control, tx, instance, spec_of(instance).lora.max_adapters, use, 2)
        await tx.adapters.set_canary(who.account, row.row_id, number, share)
        await tx.versions.failed(who.account, row.row_id, number, None)
        await _event(control, tx, who, row, "canary_asked", {"version": number, "share": share})
    view = await _published(control, who, row, number)
    return view, view.state == "canary" and view.ready == view.wanted and not view.unacknowledged


async def end_canary(control: Control, who: Principal, ref: str) -> VersionView:
    """Its requests go to the live version again, and its slots are free. Raises `NotFoundError` where there is none."""
    async with control.db.transaction() as tx:
        row = await _locked(tx, who, await lookup.adapter(tx, who, ref))
        number = row.canary_version
        if number is None:
            raise NotFoundError(f"adapter {row.name!r} has no canary.")
        await tx.adapters.set_canary(who.account, row.row_id, None, None)
        await _event(control, tx, who, row, "canary_ended", {"version": number})
    return await _published(control, who, row, number)


# Wishes.


async def _want(
    control: Control, tx: Tx, who: Principal, row: Adapter, version: AdapterVersion, kind: str
) -> Adapter:
    """It is to be live: at once where the adapter is held nowhere, else when replicas have it. `row` is locked."""
    number, now = version.version, control.clock()
    if number == row.live_version:
        if row.wanted_version is None:
            return row
        await _event(control, tx, who, row, kind, {"version": number})
        return await tx.adapters.want(row.account_id, row.row_id, None, now) or row
    uses = await _uses(tx, row)
    await _check_rank(tx, who, row, version, uses)
    await _event(control, tx, who, row, kind, {"version": number})
    if not uses:
        return await flips.live(tx, row, number, now)
    await tx.versions.failed(row.account_id, row.row_id, number, None)
    return await tx.adapters.want(row.account_id, row.row_id, number, now) or row


def _check_canary(row: Adapter, number: int, uses: list[Attachment]) -> None:
    if number == row.live_version:
        raise InvalidRequestError(f"version {number} is the live one; name another.", param="version")
    if number == row.wanted_version:
        raise ConflictError(f"version {number} is going live; roll that back first, or wait for it.")
    if not uses:
        raise ConflictError(f"adapter {row.name!r} is on no instance; attach or load it first.")


async def _check_rank(
    tx: Tx, who: Principal, row: Adapter, version: AdapterVersion, uses: list[Attachment]
) -> None:
    for use in uses:
        lora = spec_of(await lookup.instance(tx, who, use.instance_id)).lora
        if version.rank > lora.max_rank:
            raise InvalidRequestError(
                f"version {version.version} of adapter {row.name!r} has rank {version.rank}, and instance "
                f"{use.instance_id}, which has the adapter, takes up to {lora.max_rank}. Detach it there first.",
                param="version",
            )


async def _hold_instances(tx: Tx, who: Principal, row: Adapter) -> list[Attachment]:
    """Where the adapter is, with those instances locked: in the order of their ids, and before the adapter."""
    uses = sorted(await _uses(tx, row), key=lambda use: use.instance_id)
    for use in uses:
        await tx.attachments.lock_instance(who.account, use.instance_id)
    return uses


async def _uses(tx: Tx, row: Adapter) -> list[Attachment]:
    rows = await tx.attachments.list(row.account_id, adapter_row_id=row.row_id)
    return [use for use in rows if use.state != "detaching"]


async def _locked(tx: Tx, who: Principal, row: Adapter) -> Adapter:
    locked = await tx.adapters.lock(who.account, row.row_id)
    if locked is None:
        raise NotFoundError(f"you have no adapter {row.name!r}.")
    if locked.live_version is None:
        raise ConflictError(f"adapter {row.name!r} is still being imported; wait for its first version.")
    return locked


async def _version(tx: Tx, row: Adapter, number: int) -> AdapterVersion:
    version = await tx.versions.get(row.account_id, row.row_id, number) if 0 < number < 2**53 else None
    if version is None:
        raise NotFoundError(f"adapter {row.name!r} has no version {str(number)[:20]}.")
    return version


async def _event(
    control: Control, tx: Tx, who: Principal, row: Adapter, kind: str, detail: Mapping[str, object]
) -> None:
    await tx.events.append(
        who.account,
        at=control.clock(),
        kind=kind,
        subject=f"adapter:{row.id}",
        detail={"by": who.key, **detail},
    )


# What became of them.


async def _followed(control: Control, who: Principal, row: Adapter, number: int) -> tuple[VersionView, bool]:
    """Waits a little while for a version that is to go live; whether it is, and every gateway knows."""
    control.changes.notify()
    deadline = asyncio.get_running_loop().time() + LIVE_WAIT_S
    while True:
        seen = control.controller.ticked.count
        async with control.db.read() as tx:
            now = await lookup.adapter(tx, who, row.id)
        left = deadline - asyncio.get_running_loop().time()
        if now.wanted_version != number or left <= 0:
            break
        await control.controller.ticked.wait(seen, left)
    view = await _published(control, who, row, number)
    return view, view.live and not view.unacknowledged


async def _published(control: Control, who: Principal, row: Adapter, number: int) -> VersionView:
    """The version as it is once gateways know of it."""
    control.changes.notify()
    behind = await control.controller.published()
    async with control.db.read() as tx:
        now = await lookup.adapter(tx, who, row.id)
        return await _view(control, tx, now, await _version(tx, now, number), behind=behind)


async def _view(
    control: Control,
    tx: Tx,
    row: Adapter,
    version: AdapterVersion,
    *,
    warnings: list[str] | None = None,
    behind: list[str] | None = None,
) -> VersionView:
    state = state_of(row, version)
    how = await _spread(control, tx, row, version) if state in ("going_live", "canary") else None
    error = ErrorView(version.error_code, version.error_message or "") if version.error_code else None
    if how is not None and how.failure is not None:
        error = ErrorView(how.failure.code, how.failure.message)
    return VersionView(
        version=version.version,
        digest=version.digest,
        live=state == "live",
        rank=version.rank,
        alpha=version.alpha,
        target_modules=list(version.target_modules),
        size_bytes=version.size_bytes,
        warnings=[*version.warnings, *(warnings or ())],
        source=dict(version.source),
        created_at=version.created_at,
        state=state,
        ready=how.ready if how else None,
        wanted=how.wanted if how else None,
        share=row.canary_share if version.version == row.canary_version else None,
        error=error,
        live_at=version.live_at,
        unacknowledged=behind or [],
    )


def state_of(row: Adapter, version: AdapterVersion) -> str:
    """`live`, `going_live`, `canary`, `failed` (it did not go live), `former`, or `kept_back`."""
    number = version.version
    if number == row.live_version:
        return "live"
    if number == row.wanted_version:
        return "going_live"
    if number == row.canary_version:
        return "canary"
    if version.error_code is not None:
        return "failed"
    return "kept_back" if version.live_at is None else "former"


async def _spread(control: Control, tx: Tx, row: Adapter, version: AdapterVersion) -> flips.Spread:
    uses = await _uses(tx, row)
    found = [await tx.instances.get(row.account_id, use.instance_id, pool=True) for use in uses]
    instances = {instance.id: instance for instance in found if instance is not None}
    replicas = [replica for id in instances for replica in control.controller.replicas_of(id)]
    fleet = flips.Fleet(instances, uses, replicas, control.agents.facts)
    live = await lookup.live_version(tx, row)
    return flips.spread(row, _bytes(live) if live else None, _bytes(version), fleet)


def _bytes(version: AdapterVersion) -> VersionBytes:
    return VersionBytes(version.version, version.digest, version.rank, version.size_bytes)
