"""What an instance owes and what it holds next: pure, from what its replicas ran and what its account has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pillion.billing.tariff import Tariff, Terms, carried
from pillion.core.money import Bill, Book, Kind, Run, Transfer


@dataclass(frozen=True)
class Settlement:
    """To be applied as a whole, to the bill with this `number` alone.

    `remainders` by price, `charged` by run: up to when. `held`: what is in hold afterwards. `stop`: there is nothing to
    hold. `hours`: how long a hold lasts that is less than a full one.
    """

    number: int
    transfers: tuple[Transfer, ...]
    remainders: dict[int, int]
    charged: dict[int, int]
    held: int
    open: bool
    stop: bool = False
    hours: float | None = None


def settle(
    bill: Bill,
    runs: Iterable[Run],
    tariff: Tariff,
    terms: Terms,
    remainders: Mapping[int, int],
    free: int,
    now_ms: int,
    *,
    ended: bool,
) -> Settlement | None:
    """None where the hold still covers what was used. `runs`: of this bill, billed. `free`: what the account can spend."""
    runs = [run for run in runs if run.seen_ms > run.charged_ms]
    parts = [
        part
        for run in runs
        for part in tariff.time(run.gpu_type, run.gpu_count, run.region, run.charged_ms, run.seen_ms)
    ]
    costs = carried(parts, remainders)
    cost = sum(whole for whole, _ in costs.values())
    full = tariff.hold(terms, now_ms)
    if not ended and (cost < bill.held or full == cost == 0):
        return None
    from_hold = min(cost, bill.held)
    from_balance = min(cost - from_hold, free)
    moves: list[tuple[Kind, Book, Book, int]] = [
        ("settlement", "held", "revenue", from_hold),
        ("settlement", "available", "revenue", from_balance),
        ("settlement", "loss", "revenue", cost - from_hold - from_balance),
    ]
    left = bill.held - from_hold
    if ended:
        moves.append(("refund", "held", "available", left))
        held = 0
    else:
        new = max(0, min(full - left, free - from_balance))
        moves.append(("hold", "available", "held", new))
        held = left + new
    return Settlement(
        number=bill.number,
        transfers=tuple(_transfer(bill, *move) for move in moves if move[3]),
        remainders={price: rest for price, (_, rest) in costs.items()},
        charged={run.id: run.seen_ms for run in runs},
        held=held,
        open=not ended,
        stop=not ended and full > 0 and held == 0,
        hours=None if ended or not 0 < held < full else held / tariff.hourly(terms, now_ms),
    )


def first_hold(bill: Bill, amount: int) -> Transfer:
    return _transfer(bill, "hold", "available", "held", amount)


def _transfer(bill: Bill, kind: Kind, source: Book, target: Book, amount: int) -> Transfer:
    subject = f"instance:{bill.instance_id}"
    return Transfer(f"{subject}:{bill.number}:{kind}:{source}", kind, source, target, amount, subject)
