"""Who logged in, and who tried: rows of the audit log beside those of calls."""

from __future__ import annotations

from collections.abc import Sequence

from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.core.errors import PillionError
from pillion.store.rows import Member
from pillion.store.transaction import Tx

ACTION = "log_in"
# The account of tries that name no member of any: the operator alone sees them. What was typed is not written down.
NOBODY = ""
MAX_SUBJECT = 200


async def entered(control: Control, tx: Tx, who: Principal, way: str) -> None:
    """With the session itself: both or neither. `way`: the path it came by, and from where."""
    await _write(control, tx, who.account, who.key, way, 200, None)


async def refused(control: Control, people: Sequence[Member], way: str, error: PillionError) -> None:
    """For each account in which it may have been meant. Known or not, it is one transaction: the time tells nothing."""
    known = [(member.account_id, member.id) for member in people] or [(NOBODY, "")]
    async with control.db.transaction() as tx:
        for account, by in known:
            await _write(control, tx, account, by, way, error.status, error.code)


async def _write(
    control: Control, tx: Tx, account: str, by: str, way: str, status: int, error: str | None
) -> None:
    id = await tx.audit.begin(
        account,
        at=control.clock(),
        key_id=by,
        action=ACTION,
        subject=way[:MAX_SUBJECT],
        request_id=None,
    )
    await tx.audit.end(account, id, status=status, error=error)
