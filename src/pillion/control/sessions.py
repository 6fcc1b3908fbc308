"""Sessions: loads that end together (SPEC §4)."""

from __future__ import annotations

from pillion.control import adapters, lookup
from pillion.control.attachments import DETACH_WAIT_S, held, until_gone
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import AttachmentView, Page
from pillion.core.errors import NotFoundError

GENERATED = "internalize"


async def end(control: Control, who: Principal, session_key: str) -> tuple[Page[AttachmentView], bool]:
    """Unload what the session loaded and delete what was generated in it; what was ended, and whether all is gone.

    Attached adapters are no session's. Raises `NotFoundError`.
    """
    async with control.db.transaction() as tx:
        rows = await held(tx, who, session_key=session_key)
        if not rows:
            raise NotFoundError(
                f"there is no session {session_key[:80]!r}; its adapters may have ended already."
            )
        rows.sort(key=lambda row: row.adapter_row_id)
        loaded = [await lookup.adapter(tx, who, str(row.adapter_row_id)) for row in rows]
        versions = [await lookup.live_version(tx, adapter) for adapter in loaded]
        for row, adapter in zip(rows, loaded, strict=True):
            await tx.attachments.mark_detaching(who.account, row.id)
            others = await tx.attachments.list(who.account, adapter_row_id=row.adapter_row_id)
            if all(other.state == "detaching" for other in others):
                await tx.adapters.ended(who.account, row.adapter_row_id, control.clock())
            await tx.events.append(
                who.account,
                at=control.clock(),
                kind="session_ended",
                subject=f"adapter:{adapter.id}",
                detail={"by": who.key, "session": session_key, "instance": row.instance_id},
            )
    control.changes.notify()
    behind = await control.controller.published()
    left = [await until_gone(control, who, row.id, DETACH_WAIT_S) for row in rows]
    views = [
        lookup.attachment_view(now or row, adapter, behind)
        for now, row, adapter in zip(left, rows, loaded, strict=True)
    ]
    generated = {
        a.id for a, v in zip(loaded, versions, strict=True) if v is not None and GENERATED in v.source
    }
    for adapter_id in sorted(generated):
        await adapters.delete(control, who, adapter_id, force=True)
    return Page(views), not any(left)
