"""Adapters: list, show, rename, delete, their versions and files."""

from __future__ import annotations

from pathlib import Path

from pillion.artifacts.store import WEIGHTS
from pillion.control import attachments, lookup
from pillion.control.context import Control
from pillion.control.events import Wanted
from pillion.control.keys import Principal
from pillion.control.views import AdapterView, Deleted, Page
from pillion.core.errors import AdapterInUseError, NotFoundError
from pillion.core.names import check_adapter_name

DELETE_WAIT_S = 60.0


async def listing(
    control: Control, who: Principal, after: str | None, limit: int, base: str | None, part: str | None
) -> Page[AdapterView]:
    async with control.db.read() as tx:
        rows = await tx.adapters.list(
            who.account, after=lookup.page_after(after), limit=limit + 1, base=base, q=part
        )
        views = [await lookup.adapter_view(control, tx, row) for row in rows[:limit]]
    return Page(views, len(rows) > limit, str(views[-1].row_id) if len(rows) > limit else None)


async def get(control: Control, who: Principal, ref: str) -> AdapterView:
    async with control.db.read() as tx:
        return await lookup.adapter_view(control, tx, await lookup.adapter(tx, who, ref))


async def rename(control: Control, who: Principal, ref: str, label: str) -> AdapterView:
    """Former labels keep resolving."""
    check_adapter_name(label, control.catalogue.names(), "label")
    async with control.db.transaction() as tx:
        row = await lookup.adapter(tx, who, ref)
        renamed = await tx.adapters.rename(who.account, row.row_id, label, control.clock())
        assert renamed is not None
        await tx.events.append(
            who.account,
            at=control.clock(),
            kind="adapter_renamed",
            subject=f"adapter:{row.id}",
            detail={"by": who.key, "label": label, "before": row.label},
        )
        view = await lookup.adapter_view(control, tx, renamed)
    control.changes.notify()
    await control.controller.published()
    return view


async def delete(control: Control, who: Principal, ref: str, force: bool) -> Deleted:
    """Raises `AdapterInUseError` where it is attached or loaded, unless `force`, which drains it first."""
    async with control.db.transaction() as tx:
        row = await lookup.adapter(tx, who, ref)
        uses = await tx.attachments.list(who.account, adapter_row_id=row.row_id)
        if uses and not force:
            where = ", ".join(str(use.instance_id) for use in uses)
            raise AdapterInUseError(
                f"adapter {row.name!r} is in use on instance {where}; detach it, or delete with force."
            )
        await tx.everyone.lock_instances(use.instance_id for use in uses)
        for use in uses:
            await tx.attachments.mark_detaching(who.account, use.id)
    if uses:
        control.changes.notify()
        await control.controller.published()
        for use in uses:
            if await attachments.until_gone(control, who, use.id, DELETE_WAIT_S) is not None:
                raise AdapterInUseError(
                    f"adapter {row.name!r} is still draining on instance {use.instance_id}; delete it again later."
                )
    async with control.db.transaction() as tx:
        await tx.adapters.delete(who.account, row.row_id)
        await tx.events.append(
            who.account,
            at=control.clock(),
            kind="adapter_deleted",
            subject=f"adapter:{row.id}",
            detail={"by": who.key},
        )
    control.changes.notify()
    behind = await control.controller.published()
    return Deleted(row.id, unacknowledged=behind)


async def events_of(control: Control, who: Principal, ref: str, newest: bool = False) -> Wanted:
    """Which events are the adapter's. Raises `NotFoundError`."""
    async with control.db.read() as tx:
        row = await lookup.adapter(tx, who, ref)
    return Wanted(f"adapter:{row.id}", newest=newest)


async def weights(control: Control, who: Principal, ref: str) -> tuple[Path, str]:
    """The live version's weights on disk, and what to call the file."""
    async with control.db.read() as tx:
        row = await lookup.adapter(tx, who, ref)
        version = await lookup.live_version(tx, row)
    if version is None:
        raise NotFoundError(f"adapter {row.name!r} has no bytes yet.")
    path = control.artifacts.find(version.digest) / WEIGHTS
    return path, f"{row.name}-v{version.version}.safetensors"
