"""What this gateway may spend of accounts' balances: slices that control gave, reserved before and settled after (SPEC §6).

Where control is away a slice is spent to its end and no further: nobody can overspend, over however many gateways.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from pillion.core.budgets import Ask, Given
from pillion.core.errors import InsufficientBalanceError, InsufficientQuotaError, PillionError
from pillion.gateway.reports import UntoldError

log = structlog.get_logger(__name__)

AHEAD = 20  # asks are for so many requests like the one that needs it
LOW = 5  # so many of them are left when more is asked for in advance
SKEW_S = 2.0  # clocks differ; before the end of a slice by control's clock it is not touched any more
IDLE_S = 30.0
SWEEP_S = 5.0
Paid = Callable[[PillionError | None], None]


class Lessor(Protocol):
    """Control's side."""

    async def lease(self, ask: Ask) -> Given:
        """Raises `UntoldError`."""
        ...


@dataclass(eq=False)
class Payer:
    """A request that waits for `amount`."""

    amount: int
    done: Paid
    left: bool = False

    def cancel(self) -> None:
        self.left = True


@dataclass
class _Purse:
    """Of one account. `left` is neither reserved nor spent; it may be below zero where more was used than reserved."""

    left: int = 0
    until: float = 0.0
    number: int = 0
    used_at: float = 0.0
    again: Ask | None = None  # asked, and no answer came: control may have given it
    waiting: deque[Payer] = field(default_factory=deque)
    asking: asyncio.Task[None] | None = None


class Budgets:
    """`clock`: seconds since the epoch. `epoch` names this life of the gateway. Use it inside a running loop."""

    def __init__(self, lessor: Lessor, spool: str, epoch: str, clock: Callable[[], float]) -> None:
        self._lessor = lessor
        self._spool = spool
        self._epoch = epoch
        self._clock = clock
        self._purses: dict[str, _Purse] = {}

    def reserve(self, account: str, amount: int, done: Paid) -> Payer | None:
        """None where it is reserved at once; else `done` is called later, once, with why not or with None."""
        purse, now = self._purse(account), self._clock()
        purse.used_at = now
        if not purse.waiting and purse.left >= amount and now < purse.until - SKEW_S:
            purse.left -= amount
            if purse.left < LOW * amount:
                self._ask_soon(account, purse)
            return None
        payer = Payer(amount, done)
        purse.waiting.append(payer)
        self._ask_soon(account, purse)
        return payer

    def settle(self, account: str, reserved: int, spent: int) -> None:
        """What a request really cost."""
        self._purse(account).left += reserved - spent

    async def run(self) -> None:
        """Gives back what idle accounts do not need. Until cancelled."""
        try:
            while True:
                await asyncio.sleep(SWEEP_S)
                await self.sweep()
        finally:
            await self.close()

    async def sweep(self) -> None:
        now = self._clock()
        for account, purse in list(self._purses.items()):
            if purse.asking is not None or now - purse.used_at < IDLE_S:
                continue
            if purse.until <= now:
                del self._purses[account]
            elif purse.left > 0:
                await self._give_back(account, purse)

    async def close(self) -> None:
        asking = [purse.asking for purse in self._purses.values() if purse.asking is not None]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def _purse(self, account: str) -> _Purse:
        purse = self._purses.get(account)
        if purse is None:
            purse = self._purses[account] = _Purse()
        return purse

    def _ask_soon(self, account: str, purse: _Purse) -> None:
        if purse.asking is None:
            purse.asking = asyncio.get_running_loop().create_task(self._ask(account, purse))

    async def _ask(self, account: str, purse: _Purse) -> None:
        """Until nobody waits."""
        try:
            while True:
                waited = len(purse.waiting)
                refusal = await self._fill(account, purse, [p for p in purse.waiting if not p.left])
                self._serve(purse, waited, refusal)
                if not purse.waiting:
                    break
        finally:
            purse.asking = None

    async def _fill(self, account: str, purse: _Purse, waiting: list[Payer]) -> PillionError | None:
        """Asks for what those who wait need; why there is not enough."""
        largest = max((payer.amount for payer in waiting), default=max(1, abs(purse.left)))
        short = sum(payer.amount for payer in waiting) - self._usable(purse)
        try:
            await self._lease(account, purse, max(0, short), max(0, short) + AHEAD * largest)
            need = 0
            for payer in waiting:  # where there is not enough for all, it goes as far as it reaches
                need += payer.amount
                if (less := need - self._usable(purse)) > 0:
                    await self._lease(account, purse, less, less)
                    if self._usable(purse) < need:
                        break
        except UntoldError as error:
            log.warning("no budget from control", account=account, error=str(error))
            return InsufficientQuotaError(
                "The part of the account's balance that this gateway may spend is used up, and no more can be had now. "
                "Try again later."
            )
        return InsufficientBalanceError(
            "The account's balance does not cover this request: its prompt and the longest answer that it allows. Add "
            "credit, or ask for fewer tokens (max_tokens)."
        )

    async def _lease(self, account: str, purse: _Purse, needed: int, wanted: int) -> None:
        """What was asked for and not answered is asked for once more, before anything else. Raises `UntoldError`."""
        if purse.again is not None:
            await self._send(purse, purse.again)
        purse.number += 1
        await self._send(
            purse, Ask(self._spool, self._epoch, account, purse.number, needed, max(needed, wanted))
        )

    async def _send(self, purse: _Purse, ask: Ask) -> None:
        purse.again = ask
        given = await self._lessor.lease(ask)
        purse.again = None
        if self._clock() >= purse.until:
            purse.left = min(0, purse.left)  # control has taken back what it gave before
        purse.left += given.amount
        purse.until = given.until

    async def _give_back(self, account: str, purse: _Purse) -> None:
        back, purse.left = purse.left, 0
        purse.number += 1
        ask = Ask(self._spool, self._epoch, account, purse.number, 0, 0, back)
        try:
            await self._send(purse, ask)
        except UntoldError as error:
            log.info("budget not given back yet", account=account, error=str(error))

    def _serve(self, purse: _Purse, waited: int, refusal: PillionError | None) -> None:
        """Those who waited when control was asked, in their order: each gets what it needs, or hears why not."""
        loop = asyncio.get_running_loop()
        for _ in range(waited):
            payer = purse.waiting.popleft()
            if payer.left:
                continue
            if self._usable(purse) >= payer.amount:
                purse.left -= payer.amount
                loop.call_soon(self._tell, purse, payer, None)
            else:
                loop.call_soon(self._tell, purse, payer, refusal)

    def _tell(self, purse: _Purse, payer: Payer, refusal: PillionError | None) -> None:
        if not payer.left:
            payer.done(refusal)
        elif refusal is None:  # it left just now
            purse.left += payer.amount

    def _usable(self, purse: _Purse) -> int:
        return purse.left if self._clock() < purse.until - SKEW_S else min(0, purse.left)
