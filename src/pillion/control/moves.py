"""Moving an adapter to another instance: it is served there before it leaves where it was (SPEC §4).

The attachment at the target names the instance that it replaces. Once it is ready and gateways know, the source is
detached; where it fails, it is given up and the source stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pillion.control import attachments, lookup
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import AttachmentView
from pillion.core.errors import ConflictError, InvalidRequestError, NotFoundError
from pillion.store.rows import Attachment
from pillion.store.transaction import Tx


async def move(control: Control, who: Principal, ref: str, source: int, target: int) -> AttachmentView:
    """The attachment at the target, from now on under way.

    Raises `NotFoundError` (not attached at the source), `ConflictError` (it leaves the source already, or is on its way
    there), `InvalidRequestError`, `BaseMismatchError`, `InstanceAtCapacityError`.
    """
    if source == target:
        raise InvalidRequestError("from and to are the same instance.", param="to")
    async with control.db.transaction() as tx:
        adapter = await lookup.adapter(tx, who, ref)
        instance = await lookup.instance(tx, who, target)
        if instance.account_id is None:
            raise InvalidRequestError(f"instance {target} is a shared pool: load adapters there.", param="to")
        held = await tx.attachments.find(who.account, adapter.row_id, source)
        if held is None or held.hold != "attached":
            raise NotFoundError(f"adapter {adapter.name!r} is not attached to instance {source}.")
        if held.state == "detaching":
            raise ConflictError(f"adapter {adapter.name!r} is being detached from instance {source} already.")
        if held.replaces is not None:
            raise ConflictError(
                f"adapter {adapter.name!r} is on its way from instance {held.replaces} to {source}; move it on once it "
                f"is ready there, or detach it from {source} and move it from {held.replaces}."
            )
        row = await attachments.attach_in(control, tx, who, adapter, instance)
        row = await tx.attachments.replace(who.account, row.id, source)
        await tx.events.append(
            who.account,
            at=control.clock(),
            kind="move_asked",
            subject=f"adapter:{adapter.id}",
            detail={"by": who.key, "from": source, "to": target},
        )
    control.changes.notify()
    return lookup.attachment_view(row, adapter)


@dataclass(frozen=True)
class Settled:
    """A move that has come to its end: made, or given up."""

    attachment: Attachment
    source: int
    made: bool


def settled(rows: Iterable[Attachment]) -> list[Settled]:
    return [
        Settled(row, row.replaces, row.state == "ready")
        for row in rows
        if row.replaces is not None and row.state in ("ready", "failed")
    ]


async def settle(tx: Tx, move: Settled, subject: str, now: float) -> None:
    """Detach the source, or give up the target: also one that is ready on an instance that is to stop, which would leave
    the adapter nowhere. What changed since the wishes were read is left for the next look. Both instances are locked.
    """
    row = await tx.attachments.get(move.attachment.account_id, move.attachment.id, lock=True)
    if row is None or row.replaces != move.source or row.state != move.attachment.state:
        return
    account = row.account_id
    await tx.attachments.replace(account, row.id, None)
    source = await tx.attachments.find(account, row.adapter_row_id, move.source)
    target = await tx.instances.get(account, row.instance_id)
    stays = target is not None and target.wanted == "running"
    made = move.made and stays
    leaving = source if made else row
    if leaving is not None:
        await tx.attachments.mark_detaching(account, leaving.id)
    detail: dict[str, object] = {"from": move.source, "to": row.instance_id}
    if not made:
        detail["error"] = row.error_message if stays else f"instance {row.instance_id} was stopped"
    kind = "moved" if made else "move_failed"
    await tx.events.append(account, at=now, kind=kind, subject=subject, detail=detail)
