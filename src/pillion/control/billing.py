"""Holds at launch, settlements and renewals while instances run, refunds when they end (SPEC §6).

Each step of the work is one transaction under the account's wallet, in which the plan is made from what is locked. So it
may end anywhere, be repeated, or be done by two controls: nothing is lost or doubled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

import structlog

from pillion.billing.settlement import Settlement, first_hold, settle
from pillion.billing.tariff import Tariff, Terms
from pillion.control import slices
from pillion.control.context import Control
from pillion.control.plan import spec_of
from pillion.control.prices import tariff_of
from pillion.core.errors import InsufficientBalanceError, UnavailableError
from pillion.core.launch import InstanceSpec
from pillion.core.money import HOLD_HOURS, Bill, Run, Transfer, decimal, ms
from pillion.store.leases import LeaseLostError
from pillion.store.rows import Instance, Lease
from pillion.store.transaction import Tx

log = structlog.get_logger(__name__)

EVERY_S = 2.0
OFF_S = 60.0
LEASE = "billing"
LEASE_S = 10.0
CHECK_S = 3600.0


def terms_of(spec: InstanceSpec) -> Terms:
    return Terms(spec.gpu_type, spec.gpu_count, spec.placement)


async def open_bill(control: Control, tx: Tx, row: Instance) -> None:
    """With the row of a new instance: its first hold. Raises `InsufficientBalanceError`."""
    if not control.settings.billing or row.account_id is None:
        return
    now = control.clock()
    need = (await tariff_of(tx)).hold(terms_of(spec_of(row)), ms(now))
    wallet = await tx.ledger.lock(row.account_id)
    if wallet.free < need:
        raise InsufficientBalanceError(
            f"a launch holds {HOLD_HOURS} hours of its replicas' price: {decimal(need)}; {decimal(wallet.free)} is "
            "available. Add credit, or launch fewer replicas or GPUs."
        )
    await tx.bills.begin(row.account_id, row.id, now, held=need)
    if need:
        hold = first_hold(Bill(row.id, row.account_id, 0, 0, open=True, opened_at=now), need)
        await tx.ledger.post(row.account_id, [hold], now, model=row.model)


class Billing:
    """The worker: one in each control process, of which the holder of the lease works."""

    def __init__(self, control: Control, holder: str) -> None:
        self._control = control
        self._holder = holder
        self._lease: Lease | None = None
        self._checked_at = 0.0

    async def run(self) -> None:
        """Until cancelled. With billing off only what is left from when it was on."""
        billing = self._control.settings.billing
        while True:
            pause = EVERY_S
            try:
                if await self._lead():
                    await self.step()
                    pause = EVERY_S if billing else OFF_S
            except LeaseLostError:
                self._lease = None
            except UnavailableError as error:
                log.warning("billing_waits_for_database", error=error.message)
            except Exception:
                log.exception("billing_step_failed")
            await asyncio.sleep(pause)

    async def step(self) -> None:
        """Everything that is due now."""
        control, now = self._control, self._control.clock()
        async with control.db.read() as tx:
            tariff = await tariff_of(tx)
            found = await tx.runs.bills()
            missing = await tx.runs.without_bill() if control.settings.billing else []
            owing = await tx.runs.owing(int(now // 3600))
            lapsed = await tx.runs.lapsed(now - slices.GRACE_S)
        for account in lapsed:
            await self._alone(slices.expire(control, account), account)
        for row in missing:
            await self._alone(self._begin(row), f"instance:{row.id}")
        for bill, row, runs in found:
            await self._alone(self._look(bill, row, runs, tariff, now), f"instance:{row.id}")
        for account in owing:
            await self._alone(self._post(account), account)
        if now - self._checked_at >= CHECK_S:
            self._checked_at = now
            await self.check()

    async def check(self) -> list[str]:
        """Accounts whose balances are not the sums of their entries."""
        async with self._control.db.read() as tx:
            wrong = await tx.books.mismatches()
        self._control.counts.ledger_mismatches = len(wrong)
        if wrong:
            log.error("ledger_mismatch", accounts=wrong)
        return wrong

    async def _lead(self) -> bool:
        now = self._control.clock()
        if self._lease is not None and self._lease.expires_at - now > LEASE_S / 2:
            return True
        async with self._control.db.transaction() as tx:
            self._lease = await tx.leases.acquire(LEASE, self._holder, now, LEASE_S)
        return self._lease is not None

    async def _fence(self, tx: Tx) -> None:
        if self._lease is not None:
            await tx.leases.check(LEASE, self._lease.token)

    def _ended(self, row: Instance) -> bool:
        return row.wanted != "running" or not self._control.settings.billing

    async def _alone(self, work: Awaitable[None], what: str) -> None:
        """What fails for one must not hold up the others."""
        try:
            await work
        except (LeaseLostError, UnavailableError):
            raise
        except Exception:
            log.exception("billing_failed", what=what)

    async def _look(self, bill: Bill, row: Instance, runs: Sequence[Run], tariff: Tariff, now: float) -> None:
        """Settles what is due, which this tells without a lock."""
        terms = terms_of(spec_of(row))
        if self._ended(row) or settle(bill, runs, tariff, terms, {}, 0, ms(now), ended=False):
            await self._settle(bill, row)

    async def _begin(self, row: Instance) -> None:
        """Billing was turned on while it ran: its time is charged from now on, and its hold is due at once."""
        assert row.account_id is not None
        async with self._control.db.transaction() as tx:
            await self._fence(tx)
            await tx.ledger.lock(row.account_id)
            bill = await tx.bills.begin(row.account_id, row.id, self._control.clock())
        await self._settle(bill, row)

    async def _settle(self, bill: Bill, row: Instance) -> None:
        account, now = bill.account_id, self._control.clock()
        async with self._control.db.transaction() as tx:
            await self._fence(tx)
            wallet = await tx.ledger.lock(account)
            now_bill = await tx.bills.get(account, bill.instance_id)
            instance = await tx.instances.get(account, row.id)
            if now_bill is None or instance is None or not now_bill.open:
                return
            carries = await tx.bills.carries(account)
            plan = settle(
                now_bill,
                await tx.bills.runs(account, row.id),
                await tariff_of(tx),
                terms_of(spec_of(instance)),
                {price: carry.remainder for price, carry in carries.items()},
                wallet.free,
                ms(now),
                ended=self._ended(instance),
            )
            if plan is None or not await apply(tx, now_bill, plan, now, instance.model):
                return
            await self._tell(tx, instance, plan, now)
        if plan.stop:
            self._control.changes.notify()

    async def _tell(self, tx: Tx, row: Instance, plan: Settlement, now: float) -> None:
        detail: dict[str, object] = {"held": plan.held}
        if plan.stop:
            await tx.instances.stop(row.account_id, row.id, now, reason="credit_depleted")
            kind = "credit_depleted"
        elif plan.hours is not None:
            kind, detail["hours"] = "hold_is_partial", round(plan.hours, 2)
        else:
            return
        subject = f"instance:{row.id}"
        await tx.events.append(row.account_id, at=now, kind=kind, subject=subject, detail=detail)

    async def _post(self, account: str) -> None:
        """What the account owes for tokens, once an hour. What its balance does not cover is the operator's loss."""
        now = self._control.clock()
        hour = int(now // 3600)
        async with self._control.db.transaction() as tx:
            await self._fence(tx)
            wallet = await tx.ledger.lock(account)
            items = {price.id: price.item for price in await tx.prices.all()}
            available = wallet.available
            for price, carry in sorted((await tx.bills.carries(account)).items()):
                if not carry.owed or carry.posted_hour >= hour:
                    continue
                paid = min(carry.owed, available)
                available -= paid
                key = f"usage:{price}:{carry.number}"
                subject, model = f"model:{items[price]}", items[price]
                moves = [
                    Transfer(f"{key}:available", "usage", "available", "revenue", paid, subject),
                    Transfer(f"{key}:loss", "usage", "loss", "revenue", carry.owed - paid, subject),
                ]
                await tx.ledger.set_aside(account, owed=-carry.owed)
                await tx.ledger.post(account, [move for move in moves if move.amount], now, model=model)
                await tx.bills.carry(account, price, carry.remainder, hour=hour)


async def apply(tx: Tx, bill: Bill, plan: Settlement, now: float, model: str) -> bool:
    """Under the wallet's lock. False where the bill has moved on since the plan was made: then nothing was done."""
    account, instance = bill.account_id, bill.instance_id
    if not await tx.bills.move(account, instance, plan.number, held=plan.held, open=plan.open):
        return False
    for price, remainder in plan.remainders.items():
        await tx.bills.carry(account, price, remainder)
    await tx.bills.charged(account, plan.charged)
    if not plan.open:
        await tx.bills.end_runs(account, instance)
    await tx.ledger.post(account, plan.transfers, now, model=model)
    return True
