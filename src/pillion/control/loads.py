"""Load and unload: the runtime's view. A load holds a slot only while it is pinned; else it may be evicted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pillion.control import attachments, lookup
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.plan import HOLDING, ended, expected_in, spec_of
from pillion.control.views import AttachmentView, BackendAdapterView, BackendView, ErrorView, Page
from pillion.core.errors import (
    AdapterInUseError,
    AdapterNotDeployedError,
    InsufficientQuotaError,
    NotFoundError,
)
from pillion.core.replica import ReplicaStatus, Residency
from pillion.store.rows import Adapter, AdapterVersion, Attachment, Instance
from pillion.store.transaction import Tx

LOAD_WAIT_S = 60.0
_STATES: dict[str, str] = {"attaching": "loading", "ready": "loaded", "detaching": "evicting"}
_SHOWN_FIRST = ("failed", "registered", "evicting", "loading", "loaded")


@dataclass(frozen=True)
class Load:
    """`backends` are instance ids; None is where the base would resolve to."""

    backends: list[int] | None = None
    pin: bool = False
    ttl_seconds: float | None = None
    session_key: str | None = None
    wait: bool = True


async def load(control: Control, who: Principal, ref: str, wish: Load) -> tuple[Page[AttachmentView], bool]:
    """The attachments, and whether all of them are ready. All backends take it, or none does.

    Where its time is to end gateways know that before this answers: control may be away by then.
    """
    async with control.db.transaction() as tx:
        adapter = await lookup.adapter(tx, who, ref)
        version = await lookup.live_version(tx, adapter)
        if version is None:
            raise await lookup.without_bytes(tx, adapter)
        backends = await _backends(tx, who, adapter, wish.backends)
        await tx.everyone.lock_instances(backend.id for backend in backends)
        rows = [await _hold(control, tx, who, adapter, backend, wish) for backend in backends]
    control.changes.notify()
    behind = [] if wish.ttl_seconds is None else await control.controller.published()
    if wish.wait:
        rows = await _until_settled(control, who, [row.id for row in rows])
    page = Page([lookup.attachment_view(row, adapter, behind) for row in rows])
    return page, wish.wait and len(rows) == len(backends) and all(row.state == "ready" for row in rows)


async def unload(
    control: Control, who: Principal, ref: str, backends: list[int] | None
) -> tuple[Page[AttachmentView], bool]:
    """Drops pins too. Raises `AdapterInUseError` where it is attached: that is ended by detaching."""
    async with control.db.transaction() as tx:
        adapter = await lookup.adapter(tx, who, ref)
        rows = await attachments.held(tx, who, adapter_row_id=adapter.row_id)
        if backends is not None:
            rows = [row for row in rows if row.instance_id in backends]
        attached = [row.instance_id for row in rows if row.hold == "attached"]
        if attached:
            raise AdapterInUseError(
                f"adapter {adapter.name!r} is attached to instance {attached[0]}; detach it there instead of unloading."
            )
        if not rows:
            raise NotFoundError(f"adapter {adapter.name!r} is not loaded there.")
        for row in rows:
            await tx.attachments.mark_detaching(who.account, row.id)
            await attachments.event(control, tx, who, "unload_asked", adapter, row.instance_id)
    control.changes.notify()
    behind = await control.controller.published()
    left = [await attachments.until_gone(control, who, row.id, attachments.DETACH_WAIT_S) for row in rows]
    views = [lookup.attachment_view(now or row, adapter, behind) for now, row in zip(left, rows, strict=True)]
    return Page(views), not any(left)


async def warmup(control: Control, who: Principal, refs: list[str]) -> Page[AttachmentView]:
    views: list[AttachmentView] = []
    for ref in refs:
        page, _ = await load(control, who, ref, Load(wait=False))
        views.extend(page.data)
    return Page(views)


async def status(control: Control, who: Principal) -> Page[BackendView]:
    """Slots of every instance the caller can use; on a pool, only one's own adapters show."""
    async with control.db.read() as tx:
        rows = await tx.instances.list(who.account, pool=True, wanted=True, limit=1000)
        mine = await tx.attachments.list(who.account)
        found = []
        for row in rows:
            lora = spec_of(row).lora
            if not lora.enabled:
                continue
            facts = _facts(control, row)
            wished = len(await tx.everyone.attachments(instance_id=row.id))
            wished += len(await tx.everyone.canaries(row.id))
            held = (sum(r.state in HOLDING for r in status.adapters) for status in facts)
            used = min(lora.max_adapters, max([wished, *held]))
            here = {a.adapter_row_id: a for a in mine if a.instance_id == row.id}
            shown = await _shown(tx, who, here, facts)
            found.append(
                BackendView(row.id, row.model, lora.max_adapters, used, lora.max_adapters - used, shown)
            )
    return Page(found)


def _facts(control: Control, instance: Instance) -> list[ReplicaStatus]:
    replicas = control.controller.replicas_of(instance.id)
    return [control.agents.facts[r.id] for r in replicas if r.id in control.agents.facts]


async def _shown(
    tx: Tx, who: Principal, wished: Mapping[int, Attachment], facts: Sequence[ReplicaStatus]
) -> list[BackendAdapterView]:
    """The caller's, wished for or loaded on demand."""
    residents = [row for status in facts for row in status.adapters]
    asked = {row.engine_name.partition("@")[0] for row in residents if row.on_demand}
    found = []
    for adapter in await tx.adapters.among(who.account, row_ids=wished.keys(), ids=asked):
        there = [row for row in residents if row.engine_name.startswith(adapter.id + "@")]
        version = await lookup.live_version(tx, adapter)
        found.append(_backend_adapter(adapter, version, wished.get(adapter.row_id), there))
    return found


def _backend_adapter(
    adapter: Adapter,
    version: AdapterVersion | None,
    wish: Attachment | None,
    there: Sequence[Residency],
) -> BackendAdapterView:
    used = max((row.last_used for row in there if row.last_used is not None), default=None)
    rank = version.rank if version else None
    if wish is None:
        state = max((row.state for row in there if row.on_demand), key=_SHOWN_FIRST.index)
        return BackendAdapterView(adapter.id, adapter.name, state, False, used, None, None, rank, True)
    state = _STATES.get(wish.state, wish.state)  # type: ignore[assignment]
    error = ErrorView(wish.error_code, wish.error_message or "") if wish.error_code else None
    held = wish.pinned or wish.hold == "attached"
    return BackendAdapterView(adapter.id, adapter.name, state, held, used, wish.expires_at, error, rank)


async def _backends(tx: Tx, who: Principal, adapter: Adapter, ids: list[int] | None) -> list[Instance]:
    if ids is not None:
        return [await lookup.instance(tx, who, id) for id in sorted(set(ids))]
    rows = await tx.instances.list(who.account, pool=True, wanted=True, model=adapter.base_model, limit=1000)
    version = await lookup.live_version(tx, adapter)
    fitting = [r for r in rows if not attachments.obstacles(adapter, version, r)]
    own = [r for r in fitting if r.account_id is not None]
    if not fitting:
        raise AdapterNotDeployedError(
            f"no running instance can take adapter {adapter.name!r}: launch one of {adapter.base_model!r} with LoRA."
        )
    return (own or fitting)[:1]


async def _hold(
    control: Control,
    tx: Tx,
    who: Principal,
    adapter: Adapter,
    instance: Instance,
    wish: Load,
) -> Attachment:
    spec = await attachments.fits(tx, adapter, instance)
    await tx.attachments.lock_instance(who.account, instance.id)
    there = await tx.attachments.find(who.account, adapter.row_id, instance.id, lock=True)
    if wish.pin and instance.account_id is None:
        await _check_pins(control, tx, who, instance, there)
    now = control.clock()
    expires_at = None if wish.ttl_seconds is None else now + wish.ttl_seconds
    capacity = spec.lora.max_adapters
    if there is not None and there.hold == "attached" and there.state != "detaching":
        return there  # it is held more firmly than any load would
    await attachments.make_room(control, tx, instance, capacity, there, attachments.slots_of(adapter))
    if there is None or there.state in (
        "failed",
        "detaching",
    ):  # else it is held on, perhaps every few seconds
        await attachments.event(control, tx, who, "load_asked", adapter, instance.id)
    if there is not None:
        return await tx.attachments.renew(
            who.account,
            there.id,
            hold="loaded",
            pinned=wish.pin,
            expires_at=expires_at,
            session_key=wish.session_key,
            capacity=capacity,
            now=now,
            drain_deadline_s=control.settings.drain_s,
        )
    return await tx.attachments.create(
        who.account,
        adapter_row_id=adapter.row_id,
        instance_id=instance.id,
        hold="loaded",
        pinned=wish.pin,
        expires_at=expires_at,
        session_key=wish.session_key,
        capacity=capacity,
        wanted=expected_in(spec, adapter.region),
        now=now,
        drain_deadline_s=control.settings.drain_s,
    )


async def _check_pins(
    control: Control, tx: Tx, who: Principal, pool: Instance, but: Attachment | None
) -> None:
    """The pool is locked. Raises `InsufficientQuotaError` where `but` or a new one is one pin too many there."""
    account = await tx.accounts.get(who.account)
    assert account is not None
    rows = await tx.attachments.list(who.account, instance_id=pool.id)
    live = [row for row in rows if row.state != "detaching" and not ended([row], control.clock())]
    pinned = sum(row.pinned and (but is None or row.id != but.id) for row in live)
    quota = control.settings.caps[account.tier].slots
    if pinned >= quota:
        raise InsufficientQuotaError(
            f"tier {account.tier!r} may pin {quota} adapters on a shared pool, and {pinned} are pinned on instance "
            f"{pool.id}: unload one, or load without a pin."
        )


async def _until_settled(control: Control, who: Principal, ids: list[int]) -> list[Attachment]:
    deadline = asyncio.get_running_loop().time() + LOAD_WAIT_S
    while True:
        seen = control.controller.ticked.count
        async with control.db.read() as tx:
            rows = [row for id in ids if (row := await tx.attachments.get(who.account, id))]
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0 or all(row.state in ("ready", "failed") for row in rows):
            return rows
        await control.controller.ticked.wait(seen, left)
