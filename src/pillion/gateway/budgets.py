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
from pillion.core.snapshot import Key
from pillion.gateway.reports import UntoldError

log = structlog.get_logger(__name__)

AHEAD = 20  # asks are for so many requests like the one that needs it
LOW = 5  # so many of them are left when more is asked for in advance
SKEW_S = 2.0  # clocks differ; before the end of a slice by control's clock it is not touched any more
IDLE_S = 30.0
RENEW_S = 60.0  # so long before its end
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
    """For the requests of an account, or of one key with a `limit`. `left` is neither reserved nor spent; it may be below
    zero where more was used than reserved. `back`: to be returned with the next ask. `out`: reserved by requests that
    run, and `lapsed`, by those whose slice control has taken back since.
    """

    account: str
    key: str
    limit: int | None
    limited: bool = False  # that, and not the balance, is why there is not enough
    left: int = 0
    back: int = 0
    out: int = 0
    lapsed: int = 0
    until: float = 0.0
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
        self._purses: dict[tuple[str, str], _Purse] = {}
        self._number = 0

    def reserve(self, key: Key, amount: int, done: Paid) -> Payer | None:
        """None where it is reserved at once; else `done` is called later, once, with why not or with None."""
        purse = self._purse(key)
        purse.used_at = self._clock()
        if purse.limit != key.spend_limit:
            purse.limit = key.spend_limit
            self._put_back(purse)
        if not purse.waiting and purse.left >= amount and not self._over(purse):
            _reserve(purse, amount)
            if purse.left < LOW * amount:
                self._ask_soon(purse)
            return None
        payer = Payer(amount, done)
        purse.waiting.append(payer)
        self._ask_soon(purse)
        return payer

    def settle(self, key: Key, reserved: int, spent: int) -> None:
        """What a request really cost. `key` as it reserved."""
        purse = self._purse(key)
        lapsed = min(purse.lapsed, reserved)
        purse.lapsed -= lapsed
        purse.out -= reserved - lapsed
        purse.left += reserved - lapsed - spent

    async def run(self) -> None:
        """Gives back what idle accounts do not need, and keeps what others have from ending. Until cancelled."""
        try:
            while True:
                await asyncio.sleep(SWEEP_S)
                await self.sweep()
        finally:
            await self.close()

    async def sweep(self) -> None:
        now = self._clock()
        for id, purse in list(self._purses.items()):
            if purse.asking is not None:
                continue
            idle, running = now - purse.used_at >= IDLE_S, purse.out > 0 or purse.lapsed > 0
            if idle and not running and purse.until <= now:
                del self._purses[id]
            elif idle and purse.left > 0:
                self._put_back(purse)
                await self._renewing(purse)
            elif purse.until < now + RENEW_S and (running or purse.left > 0):
                await self._renewing(purse)

    async def close(self) -> None:
        asking = [purse.asking for purse in self._purses.values() if purse.asking is not None]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def _purse(self, key: Key) -> _Purse:
        id = key.account, "" if key.spend_limit is None else key.id
        purse = self._purses.get(id)
        if purse is None:
            purse = self._purses[id] = _Purse(*id, key.spend_limit)
        return purse

    def _ask_soon(self, purse: _Purse) -> None:
        if purse.asking is None:
            purse.asking = asyncio.get_running_loop().create_task(self._ask(purse))

    async def _ask(self, purse: _Purse) -> None:
        """Until nobody waits."""
        try:
            while True:
                waited = len(purse.waiting)
                refusal = await self._fill(purse, [p for p in purse.waiting if not p.left])
                self._serve(purse, waited, refusal)
                if not purse.waiting:
                    break
        finally:
            purse.asking = None

    async def _fill(self, purse: _Purse, waiting: list[Payer]) -> PillionError | None:
        """Asks for what those who wait need; why there is not enough."""
        largest = max((payer.amount for payer in waiting), default=max(1, abs(purse.left)))
        short = sum(payer.amount for payer in waiting) - self._usable(purse)
        try:
            await self._lease(purse, max(0, short), max(0, short) + AHEAD * largest)
            need = 0
            for payer in waiting:  # where there is not enough for all, it goes as far as it reaches
                need += payer.amount
                if (less := need - self._usable(purse)) > 0:
                    await self._lease(purse, less, less)
                    if self._usable(purse) < need:
                        break
        except Exception as error:  # whatever it was, those who wait are to hear of it
            log.warning("no budget from control", account=purse.account, error=repr(error))
            return InsufficientQuotaError(
                "The part of the account's balance that this gateway may spend is used up, and no more can be had now. "
                "Try again later."
            )
        if purse.limited:
            return InsufficientQuotaError(
                "What this API key may still spend this month does not cover this request: its prompt and the longest "
                "answer that it allows. Ask for fewer tokens (max_tokens), or raise the key's spend limit."
            )
        return InsufficientBalanceError(
            "The account's balance does not cover this request: its prompt and the longest answer that it allows. Add "
            "credit, or ask for fewer tokens (max_tokens)."
        )

    async def _lease(self, purse: _Purse, needed: int, wanted: int) -> None:
        """What was asked for and not answered is asked for once more, before anything else. Raises `UntoldError`."""
        if purse.again is not None:
            await self._send(purse, purse.again)
        self._number += 1
        if self._over(purse):
            self._put_back(purse)
        back, purse.back = purse.back, 0
        wanted = max(needed, wanted)
        await self._send(
            purse,
            Ask(self._spool, self._epoch, purse.account, self._number, needed, wanted, back, purse.key),
        )

    async def _send(self, purse: _Purse, ask: Ask) -> None:
        over = self._clock() >= purse.until
        purse.again = ask
        given = await self._lessor.lease(ask)
        purse.again = None
        if over:  # control has taken back what it gave before
            purse.left, purse.back = min(0, purse.left), 0
            purse.lapsed, purse.out = purse.lapsed + purse.out, 0
        purse.left += given.amount
        purse.until = given.until
        purse.limited = given.limited

    def _renewing(self, purse: _Purse) -> asyncio.Task[None]:
        purse.asking = asyncio.get_running_loop().create_task(self._renew(purse))
        return purse.asking

    async def _renew(self, purse: _Purse) -> None:
        try:
            await self._lease(purse, 0, 0)
        except UntoldError as error:
            log.info("budget not renewed or given back yet", account=purse.account, error=str(error))
        finally:
            purse.asking = None
        if purse.waiting:
            self._ask_soon(purse)

    def _put_back(self, purse: _Purse) -> None:
        back = max(0, purse.left)
        purse.back += back
        purse.left -= back

    def _serve(self, purse: _Purse, waited: int, refusal: PillionError | None) -> None:
        """Those who waited when control was asked, in their order: each gets what it needs, or hears why not."""
        loop = asyncio.get_running_loop()
        for _ in range(waited):
            payer = purse.waiting.popleft()
            if payer.left:
                continue
            if self._usable(purse) >= payer.amount:
                _reserve(purse, payer.amount)
                loop.call_soon(self._tell, purse, payer, None)
            else:
                loop.call_soon(self._tell, purse, payer, refusal)

    def _tell(self, purse: _Purse, payer: Payer, refusal: PillionError | None) -> None:
        if not payer.left:
            payer.done(refusal)
        elif refusal is None:  # it left just now
            purse.left += payer.amount
            purse.out -= payer.amount

    def _usable(self, purse: _Purse) -> int:
        return min(0, purse.left) if self._over(purse) else purse.left

    def _over(self, purse: _Purse) -> bool:
        return self._clock() >= purse.until - SKEW_S


def _reserve(purse: _Purse, amount: int) -> None:
    purse.left -= amount
    purse.out += amount
