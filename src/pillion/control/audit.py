"""Who did what: one row for every call that is to change something, written before it is done, closed when it is."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError

from pillion.control import lookup
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import Page
from pillion.core.errors import PillionError
from pillion.store.rows import AuditRecord

MAX_SUBJECT = 500

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class AuditView:
    """`by`: a key, or a member. `subject`: the path that was called. `made`: the id of what it made.

    `status` and `error` are the answer's; without a status there was none, or there is none yet.
    """

    id: int
    at: float
    account: str
    by: str
    action: str
    subject: str
    made: str | None
    status: int | None
    error: str | None
    request_id: str | None


@dataclass(frozen=True)
class Begun:
    """A row that waits for its outcome."""

    id: int
    account: str


@dataclass(frozen=True)
class Outcome:
    status: int
    error: str | None = None
    made: str | None = None


async def begin(control: Control, who: Principal, action: str, subject: str, request_id: str | None) -> Begun:
    """Raises `UnavailableError`: what cannot be written down is not done."""
    async with control.db.transaction() as tx:
        id = await tx.audit.begin(
            who.account,
            at=control.clock(),
            key_id=who.key,
            action=action,
            subject=subject[:MAX_SUBJECT],
            request_id=request_id[:MAX_SUBJECT] if request_id else None,
        )
    return Begun(id, who.account)


async def end(control: Control, begun: Begun, outcome: Outcome) -> None:
    """It is done, whatever becomes of this: where the database is away the row stays without an outcome."""
    try:
        async with control.db.transaction() as tx:
            await tx.audit.end(
                begun.account, begun.id, status=outcome.status, error=outcome.error, made=outcome.made
            )
    except (PillionError, SQLAlchemyError) as error:
        log.warning("outcome_not_written", audit=begun.id, status=outcome.status, error=str(error))


async def listing(
    control: Control, who: Principal, action: str | None, after: str | None, limit: int
) -> Page[AuditView]:
    """The caller's account's, newest first."""
    async with control.db.read() as tx:
        rows = await tx.audit.list(
            who.account, after=lookup.page_after(after), limit=limit + 1, action=action
        )
    return _page(rows, limit)


async def listing_all(
    control: Control, account: str | None, action: str | None, after: str | None, limit: int
) -> Page[AuditView]:
    """Everyone's, newest first, for the operator."""
    async with control.db.read() as tx:
        rows = await tx.everyone.audit(
            after=lookup.page_after(after), limit=limit + 1, account=account, action=action
        )
    return _page(rows, limit)


def _page(rows: list[AuditRecord], limit: int) -> Page[AuditView]:
    views = [
        AuditView(
            r.id, r.at, r.account_id, r.key_id, r.action, r.subject, r.made, r.status, r.error, r.request_id
        )
        for r in rows[:limit]
    ]
    return Page(views, len(rows) > limit, str(views[-1].id) if len(rows) > limit else None)
