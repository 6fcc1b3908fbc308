"""Slices of balances for gateways, so that requests need not ask control and still nobody overspends (SPEC §6)."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from pillion.control.charges import month_of
from pillion.control.context import Control
from pillion.core.budgets import Ask, Given
from pillion.store.slices import Slice
from pillion.store.transaction import Tx

SLICE_S = 600.0
# After its end a slice is kept back for a little longer: clocks differ, and usage is on its way.
GRACE_S = 30.0
NANOS = 1000  # in 1e-6 of the currency
SHARE = 4  # an ask gets at most this part of what is free, unless it needs more


async def lease(control: Control, ask: Ask) -> Given:
    """Once for each number: asked again, it answers the same and gives nothing more."""
    now = control.clock()
    async with control.db.transaction() as tx:
        wallet = await tx.ledger.lock(ask.account)
        freed = await _expire(tx, ask.account, now)
        known = await tx.slices.of(ask.account)
        row = next((one for one in known if _asks(one, ask)), None) or _none(ask, now)
        if ask.number <= row.number:
            given = row.given if ask.number == row.number else 0
            return Given(ask.number, given, row.until)
        back = min(max(0, ask.back), row.outstanding)
        free = max(0, wallet.available - wallet.leased - wallet.owed + freed + back)
        left = await _left(tx, ask, known, now)
        given = _given(free if left is None else min(free, left + back), ask)
        row = replace(
            row,
            number=ask.number,
            given=given,
            outstanding=row.outstanding - back + given,
            until=now + SLICE_S,
        )
        await tx.slices.put(row)
        await tx.ledger.set_aside(ask.account, leased=given - back)
    return Given(ask.number, given, row.until, limited=given < ask.needed <= free)


async def expire(control: Control, account: str) -> None:
    """What gateways did not spend in time is the account's again."""
    async with control.db.transaction() as tx:
        await tx.ledger.lock(account)
        await _expire(tx, account, control.clock())


def _asks(one: Slice, ask: Ask) -> bool:
    return (one.gateway, one.epoch, one.key_id) == (ask.spool, ask.epoch, ask.key)


def _none(ask: Ask, now: float) -> Slice:
    return Slice(ask.account, ask.spool, ask.epoch, ask.key, 0, 0, 0, now)


async def _left(tx: Tx, ask: Ask, known: Sequence[Slice], now: float) -> int | None:
    """Of the key's limit for this month, neither spent nor in a gateway's hands; None where it has no limit."""
    key = await tx.keys.get(ask.account, ask.key) if ask.key else None
    if key is None or key.spend_limit is None:
        return None
    spent = -(-await tx.usage.spent(ask.account, key.id, month_of(now)) // NANOS)
    return max(0, key.spend_limit - spent - sum(one.outstanding for one in known if one.key_id == key.id))


def _given(free: int, ask: Ask) -> int:
    needed = max(0, ask.needed)
    if needed > free:
        return 0
    return max(needed, min(max(0, ask.wanted), free // SHARE))


async def _expire(tx: Tx, account: str, now: float) -> int:
    freed = 0
    for one in await tx.slices.of(account):
        if one.until + GRACE_S <= now:
            await tx.slices.drop(one)
            freed += one.outstanding
    if freed:
        await tx.ledger.set_aside(account, leased=-freed)
    return freed
