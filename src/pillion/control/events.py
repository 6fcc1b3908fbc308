"""Events, as they are asked for: a page of them, or all from one on and then each that comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog
from msgspec import json

from pillion.control import lookup
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import EventView, Page
from pillion.core.errors import UnavailableError
from pillion.store.rows import Event
from pillion.store.transaction import Tx

FOLLOW_S = 0.5
BEAT_S = 15.0  # an empty line, so that nobody on the way takes a quiet stream for a dead one
SETTLED_S = 5.0  # what is written together is seen together; ids are given out before
PAGE = 500

log = structlog.get_logger(__name__)
Read = Callable[[Tx, int, int], Awaitable[list[Event]]]


@dataclass(frozen=True)
class Wanted:
    """Which events. `newest`: the last ones first."""

    subject: str | None = None
    kinds: tuple[str, ...] = ()
    newest: bool = False


@dataclass(frozen=True)
class AccountEventView(EventView):
    """An event and whose it is; of none: the operator's own."""

    account: str | None


async def listing(
    control: Control, who: Principal, wanted: Wanted, after: str | None, limit: int
) -> Page[EventView]:
    """The caller's own."""
    async with control.db.read() as tx:
        rows = await _mine(who, wanted)(tx, lookup.page_after(after), limit + 1)
    return _page([_view(row) for row in rows], limit)


async def listing_all(
    control: Control, wanted: Wanted, account: str | None, after: str | None, limit: int
) -> Page[AccountEventView]:
    """Everyone's, for the operator."""
    async with control.db.read() as tx:
        rows = await _all(wanted, account)(tx, lookup.page_after(after), limit + 1)
    return _page([_account_view(row) for row in rows], limit)


def follow(control: Control, who: Principal, wanted: Wanted, after: str | None) -> AsyncIterator[bytes]:
    """The caller's own as JSON lines, from `after` on and without end, for as long as they are let in."""
    return _follow(control, who, lookup.page_after(after), _mine(who, wanted), _view)


def follow_all(
    control: Control, who: Principal, wanted: Wanted, account: str | None, after: str | None
) -> AsyncIterator[bytes]:
    return _follow(control, who, lookup.page_after(after), _all(wanted, account), _account_view)


async def still_good(control: Control, tx: Tx, who: Principal) -> bool:
    """Whether who began it would still be let in: by their account, as its member, with their key."""
    account = await tx.accounts.get(who.account)
    if account is None or account.suspended_at is not None:
        return False
    if who.member is not None and await tx.members.get(who.account, who.member) is None:
        return False
    key = await tx.keys.get(who.account, who.key)
    if key is None:  # who came without one has none to lose
        return True
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > control.clock())


def _mine(who: Principal, wanted: Wanted) -> Read:
    async def read(tx: Tx, after: int, limit: int) -> list[Event]:
        return await tx.events.list(
            who.account,
            after=after,
            limit=limit,
            subject=wanted.subject,
            kinds=wanted.kinds,
            newest=wanted.newest,
        )

    return read


def _all(wanted: Wanted, account: str | None) -> Read:
    async def read(tx: Tx, after: int, limit: int) -> list[Event]:
        return await tx.everyone.events(
            after=after,
            limit=limit,
            account=account,
            subject=wanted.subject,
            kinds=wanted.kinds,
            newest=wanted.newest,
        )

    return read


async def _follow(
    control: Control, who: Principal, after: int, read: Read, view: Callable[[Event], Any]
) -> AsyncIterator[bytes]:
    """Transactions may end in another order than their ids: what is younger than `SETTLED_S` is looked at again."""
    told: dict[int, float] = {}
    quiet_since = asyncio.get_running_loop().time()
    while True:
        last, more = after, True
        while more:
            try:
                async with control.db.read() as tx:
                    if not await still_good(control, tx, who):
                        return
                    rows = await read(tx, last, PAGE)
            except UnavailableError as error:
                log.warning("database_away", error=error.message)
                break
            for row in rows:
                if row.id not in told:
                    yield json.encode(view(row)) + b"\n"
                    quiet_since = asyncio.get_running_loop().time()
                    told[row.id] = row.at
            last, more = (rows[-1].id if rows else last), len(rows) == PAGE
            settled = control.clock() - SETTLED_S
            after = max([after, *(id for id, at in told.items() if at < settled)])
            told = {id: at for id, at in told.items() if id > after}
        if asyncio.get_running_loop().time() - quiet_since > BEAT_S:
            yield b"\n"
            quiet_since = asyncio.get_running_loop().time()
        await asyncio.sleep(FOLLOW_S)


def _view(event: Event) -> EventView:
    return EventView(event.id, event.at, event.kind, event.subject, event.detail)


def _account_view(event: Event) -> AccountEventView:
    return AccountEventView(
        event.id, event.at, event.kind, event.subject, event.detail, account=event.account_id
    )


def _page(views: list[Any], limit: int) -> Page[Any]:
    more = len(views) > limit
    return Page(views[:limit], more, str(views[limit - 1].id) if more else None)
