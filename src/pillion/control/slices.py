"""Slices of balances for gateways, so that requests need not ask control and still nobody overspends (SPEC §6)."""

from __future__ import annotations

from msgspec.structs import replace

from pillion.control.context import Control
from pillion.core.budgets import Ask, Given
from pillion.store.slices import Slice
from pillion.store.transaction import Tx

SLICE_S = 600.0
# After its end a slice is kept back for a little longer: clocks differ, and usage is on its way.
GRACE_S = 30.0
SHARE = 4  # an ask gets at most this part of what is free, unless it needs more


async def lease(control: Control, ask: Ask) -> Given:
    """Once for each number: asked again, it answers the same and gives nothing more."""
    now = control.clock()
    async with control.db.transaction() as tx:
        wallet = await tx.ledger.lock(ask.account)
        freed = await _expire(tx, ask.account, now)
        known = {one.epoch: one for one in await tx.slices.of(ask.account, ask.spool)}
        row = known.get(ask.epoch) or Slice(ask.account, ask.spool, ask.epoch, 0, 0, 0, now)
        if ask.number <= row.number:
            given = row.given if ask.number == row.number else 0
            return Given(ask.number, given, row.until)
        back = min(max(0, ask.back), row.outstanding)
        free = max(0, wallet.available - wallet.leased - wallet.owed + freed + back)
        given = _given(free, ask)
        row = replace(
            row,
            number=ask.number,
            given=given,
            outstanding=row.outstanding - back + given,
            until=now + SLICE_S,
        )
        await tx.slices.put(row)
        await tx.ledger.set_aside(ask.account, leased=given - back)
    return Given(ask.number, given, row.until)


async def expire(control: Control, account: str) -> None:
    """What gateways did not spend in time is the account's again."""
    async with control.db.transaction() as tx:
        await tx.ledger.lock(account)
        await _expire(tx, account, control.clock())


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
