"""Attach and detach: the wish that an adapter be served by an instance, and its end."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec

from pillion.control import instances, lookup
from pillion.control.context import Control
from pillion.control.instances import Launch
from pillion.control.keys import Principal
from pillion.control.plan import ended, expected_in, spec_of
from pillion.control.views import AttachmentView, EligibleView, Page
from pillion.core.errors import (
    BaseMismatchError,
    InstanceAtCapacityError,
    InvalidRequestError,
    NotFoundError,
)
from pillion.core.launch import InstanceSpec
from pillion.core.names import Ref
from pillion.store.rows import Adapter, AdapterVersion, Attachment, Instance
from pillion.store.transaction import Tx

DETACH_WAIT_S = 5.0


def obstacles(adapter: Adapter, version: AdapterVersion | None, instance: Instance) -> list[str]:
    """Why this instance cannot take this adapter, leaving capacity aside: nothing if it can."""
    spec = spec_of(instance)
    found = []
    if instance.model != adapter.base_model:
        found.append(f"other base: {instance.model}, the adapter needs {adapter.base_model}")
    if not spec.lora.enabled:
        found.append("LoRA off: it is fixed at launch; launch another with LoRA")
    if adapter.region is not None and adapter.region not in spec.placement:
        found.append(f"other region: {', '.join(spec.placement)}, the adapter is bound to {adapter.region}")
    if version is not None and spec.lora.enabled and version.rank > spec.lora.max_rank:
        found.append(f"rank too high: {version.rank}, the instance takes up to {spec.lora.max_rank}")
    if instance.wanted != "running":
        found.append("stopped")
    return found


async def eligible(control: Control, who: Principal, ref: str) -> Page[EligibleView]:
    """Every instance the caller can see, whether it can take the adapter and, if not, why."""
    async with control.db.read() as tx:
        adapter = await lookup.adapter(tx, who, ref)
        version = await lookup.largest_version(tx, adapter)
        there = {a.instance_id for a in await tx.attachments.list(who.account, adapter_row_id=adapter.row_id)}
        need = slots_of(adapter)
        rows = await tx.instances.list(who.account, pool=True, wanted=True, limit=1000)
        found = []
        for row in rows:
            used = await tx.everyone.held_slots(row.id, control.clock())
            slots = spec_of(row).lora.max_adapters if spec_of(row).lora.enabled else 0
            reasons = obstacles(adapter, version, row)
            if row.account_id is None:
                reasons.append("shared pool: load it there instead of attaching")
            if row.id in there:
                reasons.append("already attached")
            elif slots and used + need > slots:
                reasons.append("full")
            found.append(
                EligibleView(row.id, row.model, not reasons, reasons, slots, used, max(0, slots - used))
            )
    return Page(found)


async def attach(control: Control, who: Principal, instance_id: int, ref: str) -> AttachmentView:
    """The wish is kept before this answers; follow the attachment until it is `ready`.

    Raises `BaseMismatchError`, `InvalidRequestError` (LoRA off, region, rank), `AlreadyAttachedError`,
    `InstanceAtCapacityError`.
    """
    async with control.db.transaction() as tx:
        adapter = await lookup.adapter(tx, who, ref)
        instance = await lookup.instance(tx, who, instance_id)
        if instance.account_id is None:
            raise InvalidRequestError(
                f"instance {instance_id} is a shared pool: load adapters there.", param="instance_id"
            )
        row = await attach_in(control, tx, who, adapter, instance)
    control.changes.notify()
    return lookup.attachment_view(row, adapter)


async def launch_and_attach(control: Control, who: Principal, ref: str, wish: Launch) -> AttachmentView:
    """Launch an instance of the adapter's base with LoRA, in its region, and attach it as the first one.

    Both or neither: an adapter that the launch could not take launches nothing.
    """
    async with control.db.read() as tx:
        adapter = await lookup.adapter(tx, who, ref)
    if wish.model != adapter.base_model:
        raise BaseMismatchError(
            f"adapter {adapter.name!r} rides on {adapter.base_model!r}, not on {wish.model!r}.",
            param="launch.model",
        )
    if not wish.lora.enabled:
        raise InvalidRequestError("launch it with LoRA: send launch.lora.", param="launch.lora")
    spec = await instances.resolve(control, who, wish, adapter.region)
    async with control.db.transaction() as tx:
        adapter = await lookup.adapter(tx, who, adapter.id)
        instance = await instances.create(control, tx, who, wish.model, spec)
        row = await attach_in(control, tx, who, adapter, instance)
    control.changes.notify()
    return lookup.attachment_view(row, adapter)


async def attach_in(
    control: Control, tx: Tx, who: Principal, adapter: Adapter, instance: Instance
) -> Attachment:
    """`attach` within a transaction of the caller's."""
    spec = await fits(tx, adapter, instance)
    await tx.attachments.lock_instance(who.account, instance.id)
    there = await tx.attachments.find(who.account, adapter.row_id, instance.id, lock=True)
    again = there is not None and (there.hold == "loaded" or there.state == "failed")
    if there is None or again:
        await make_room(control, tx, instance, spec.lora.max_adapters, there, slots_of(adapter))
    await event(control, tx, who, "attach_asked", adapter, instance.id)
    if there is not None and again:
        return await tx.attachments.renew(
            who.account,
            there.id,
            hold="attached",
            pinned=False,
            expires_at=None,
            session_key=None,
            capacity=spec.lora.max_adapters,
            now=control.clock(),
            drain_deadline_s=control.settings.drain_s,
        )
    return await tx.attachments.create(
        who.account,
        adapter_row_id=adapter.row_id,
        instance_id=instance.id,
        hold="attached",
        capacity=spec.lora.max_adapters,
        wanted=expected_in(spec, adapter.region),
        now=control.clock(),
        drain_deadline_s=control.settings.drain_s,
    )


async def detach(
    control: Control, who: Principal, instance_id: int, ref: str, force: bool
) -> tuple[AttachmentView, bool]:
    """No gateway routes to it any more, then it drains; the view, and whether it is proved gone already.

    `force` cuts requests in flight off at once.
    """
    async with control.db.transaction() as tx:
        adapter = await lookup.adapter(tx, who, ref)
        await lookup.instance(tx, who, instance_id)
        row = await tx.attachments.find(who.account, adapter.row_id, instance_id)
        if row is None:
            raise NotFoundError(f"adapter {adapter.name!r} is not attached to instance {instance_id}.")
        await tx.attachments.mark_detaching(who.account, row.id, drain_deadline_s=0.0 if force else None)
        await event(control, tx, who, "detach_asked", adapter, instance_id)
    control.changes.notify()
    behind = await control.controller.published()
    left = await until_gone(control, who, row.id, DETACH_WAIT_S)
    return lookup.attachment_view(left or _as(row, "detached"), adapter, behind), left is None


async def of_instance(control: Control, who: Principal, instance_id: int) -> Page[AttachmentView]:
    async with control.db.read() as tx:
        await lookup.instance(tx, who, instance_id)
        rows = await tx.attachments.list(who.account, instance_id=instance_id)
        adapters = {a.row_id: a for a in await tx.adapters.list(who.account, limit=1000)}
    return Page([lookup.attachment_view(row, adapters[row.adapter_row_id]) for row in rows])


async def held(
    tx: Tx, who: Principal, *, adapter_row_id: int | None = None, session_key: str | None = None
) -> list[Attachment]:
    """An adapter's, or a session's, as they stay until the transaction ends: their instances are locked.

    They may have been attached, or be another session's, since they were found.
    """
    found = await tx.attachments.list(who.account, adapter_row_id=adapter_row_id, session_key=session_key)
    where = {row.instance_id for row in found}
    await tx.everyone.lock_instances(where)
    rows = await tx.attachments.list(who.account, adapter_row_id=adapter_row_id, session_key=session_key)
    return [row for row in rows if row.instance_id in where]


async def until_gone(control: Control, who: Principal, attachment: int, timeout: float) -> Attachment | None:
    """The attachment as it is after at most `timeout` seconds; None as soon as it is gone."""
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        seen = control.controller.ticked.count
        async with control.db.read() as tx:
            row = await tx.attachments.get(who.account, attachment)
        left = deadline - asyncio.get_running_loop().time()
        if row is None or left <= 0:
            return row
        await control.controller.ticked.wait(seen, left)


def slots_of(adapter: Adapter) -> int:
    """How many it takes on an instance: one, and one for its canary."""
    return 1 if adapter.canary_version is None else 2


async def make_room(
    control: Control, tx: Tx, instance: Instance, capacity: int, but: Attachment | None, need: int = 1
) -> None:
    """End unpinned loads until `need` slots are free, leaving `but` out of account: those that were evicted
    already, then the oldest of the account that has most. The instance is locked.

    Raises `InstanceAtCapacityError` where too many are held.
    """
    now = control.clock()
    rows = await tx.everyone.attachments(instance_id=instance.id, detaching=False)
    rows = [r for r in rows if (but is None or r.id != but.id) and not ended([r], now)]
    canaries = await tx.everyone.canaries(instance.id)
    taken = sum(1 + (row.adapter_row_id in canaries) for row in rows)
    loads = [row for row in rows if row.hold == "loaded" and not row.pinned]
    having = Counter(row.account_id for row in rows)

    def order(row: Attachment) -> tuple[bool, int, float, int]:
        return row.state != "registered", -having[row.account_id], row.created_at, row.id

    while taken + need > capacity:
        if not loads:
            here = f"{capacity} slots of instance {instance.id}"
            how = f"all {here} are held" if need == 1 else f"{taken} of {here} are held, and it needs {need}"
            raise InstanceAtCapacityError(
                f"model instance at capacity: {how}; detach or unpin one, or use another instance."
            )
        oldest = min(loads, key=order)
        loads.remove(oldest)
        having[oldest.account_id] -= 1
        taken -= 1 + (oldest.adapter_row_id in canaries)
        await tx.attachments.mark_detaching(oldest.account_id, oldest.id)
        await keep_end(tx, oldest)
        await _evicted(tx, oldest, now)


async def keep_end(tx: Tx, row: Attachment) -> None:
    """What leaves without having been asked to before its time was over: on demand it is served until then, not after."""
    if row.expires_at is None:
        return
    left = await tx.attachments.list(row.account_id, adapter_row_id=row.adapter_row_id)
    if all(other.id == row.id or other.state == "detaching" for other in left):
        await tx.adapters.ended(row.account_id, row.adapter_row_id, row.expires_at)


async def _evicted(tx: Tx, row: Attachment, now: float) -> None:
    """For its owner, who is perhaps another than he whom room is made for."""
    adapter = await tx.adapters.by_ref(row.account_id, Ref(row_id=row.adapter_row_id))
    assert adapter is not None
    await tx.events.append(
        row.account_id,
        at=now,
        kind="evicted",
        subject=f"adapter:{adapter.id}",
        detail={"instance": row.instance_id},
    )


async def fits(tx: Tx, adapter: Adapter, instance: Instance) -> InstanceSpec:
    """The spec of an instance that can take the adapter. Raises `BaseMismatchError`, `InvalidRequestError`."""
    version = await lookup.largest_version(tx, adapter)
    if version is None:
        raise await lookup.without_bytes(tx, adapter)
    if instance.model != adapter.base_model:
        raise BaseMismatchError(
            f"instance {instance.id} serves {instance.model!r}; adapter {adapter.name!r} rides on {adapter.base_model!r}.",
            param="instance_id",
        )
    reasons = obstacles(adapter, version, instance)
    if reasons:
        raise InvalidRequestError(
            f"instance {instance.id} cannot take adapter {adapter.name!r}: {'; '.join(reasons)}.",
            param="instance_id",
            reasons=tuple(reasons),
        )
    return spec_of(instance)


async def event(
    control: Control, tx: Tx, who: Principal, kind: str, adapter: Adapter, instance_id: int
) -> None:
    await tx.events.append(
        who.account,
        at=control.clock(),
        kind=kind,
        subject=f"adapter:{adapter.id}",
        detail={"by": who.key, "instance": instance_id},
    )


def _as(row: Attachment, state: str) -> Attachment:
    return msgspec.structs.replace(row, state=state, ready=0)
