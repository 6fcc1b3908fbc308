"""What is paid from the hold, from the balance, and by the operator; and what is held next."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.billing.settlement import Settlement, settle
from pillion.billing.tariff import Tariff, Terms
from pillion.core.money import HOUR_MS, Bill, Price, Run

DAY_MS = 24 * HOUR_MS
RATE = 2_490_000
FULL = 24 * RATE
TARIFF = Tariff([Price(1, "gpu_hour", "H100", "", RATE, 0, 0, 0, "config", 0.0)])
TERMS = Terms("H100", 1, {"eu": 1})
BILL = Bill(5, "acc", FULL, 3, open=True, opened_at=0.0)


def run(hours: float, charged: float = 0.0) -> Run:
    return Run(
        1,
        "acc",
        5,
        "r",
        "eu",
        "H100",
        1,
        0,
        round(hours * HOUR_MS),
        round(charged * HOUR_MS),
        open=True,
        billed=True,
    )


def plan(hours: float, free: int, *, ended: bool = False, held: int = FULL) -> Settlement | None:
    bill = msgspec.structs.replace(BILL, held=held)
    return settle(bill, [run(hours)], TARIFF, TERMS, {}, free, DAY_MS, ended=ended)


def moves(found: Settlement | None) -> list[tuple[str, str, str, int]]:
    assert found is not None
    return [(t.kind, t.source, t.target, t.amount) for t in found.transfers]


def test_nothing_is_due_while_the_hold_lasts() -> None:
    assert plan(23.99, 10 * FULL) is None


def test_a_hold_that_is_used_up_is_settled_and_taken_again() -> None:
    found = plan(24, 10 * FULL)
    assert moves(found) == [("settlement", "held", "revenue", FULL), ("hold", "available", "held", FULL)]
    assert found is not None
    assert (found.held, found.hours, found.stop, found.charged) == (FULL, None, False, {1: DAY_MS})


def test_what_goes_beyond_the_hold_is_paid_from_the_balance() -> None:
    assert moves(plan(25, FULL + RATE)) == [
        ("settlement", "held", "revenue", FULL),
        ("settlement", "available", "revenue", RATE),
        ("hold", "available", "held", FULL),
    ]


def test_what_no_balance_covers_is_the_operators_loss() -> None:
    found = plan(30, RATE)
    assert moves(found) == [
        ("settlement", "held", "revenue", FULL),
        ("settlement", "available", "revenue", RATE),
        ("settlement", "loss", "revenue", 5 * RATE),
    ]
    assert found is not None
    assert (found.stop, found.open, found.held) == (True, True, 0)


def test_less_than_a_full_hold_is_held_with_a_warning() -> None:
    found = plan(24, 3 * RATE)
    assert moves(found)[1:] == [("hold", "available", "held", 3 * RATE)]
    assert found is not None
    assert (found.hours, found.stop) == (3.0, False)


def test_an_end_gives_back_what_was_not_used() -> None:
    found = plan(1.5, 0, ended=True)
    used = RATE * 3 // 2
    assert moves(found) == [
        ("settlement", "held", "revenue", used),
        ("refund", "held", "available", FULL - used),
    ]
    assert found is not None
    assert (found.open, found.held) == (False, 0)


def test_one_that_never_ran_gets_all_back() -> None:
    assert moves(plan(0, 0, ended=True)) == [("refund", "held", "available", FULL)]


def test_what_is_free_of_charge_is_never_due_and_never_stops() -> None:
    bill = msgspec.structs.replace(BILL, held=0)
    free = Terms("cpu", 1, {"eu": 1})
    cpu = msgspec.structs.replace(run(1000), gpu_type="cpu")
    assert settle(bill, [cpu], TARIFF, free, {}, 0, DAY_MS, ended=False) is None
    found = settle(bill, [cpu], TARIFF, free, {}, 0, DAY_MS, ended=True)
    assert moves(found) == []


@pytest.mark.parametrize("free", [0, 1])
def test_one_that_has_no_hold_yet_takes_one_or_stops(free: int) -> None:
    found = plan(0, free, held=0)
    assert found is not None
    assert (found.stop, found.held) == (free == 0, free)


@given(
    st.lists(st.integers(1, 3 * DAY_MS), max_size=30),
    st.integers(0, 5 * FULL),
    st.integers(1, 10**7),
    st.booleans(),
)
def test_all_time_is_charged_once_and_no_balance_falls_below_zero(
    looks: list[int], funds: int, rate: int, stops: bool
) -> None:
    """Whenever it is looked at, what was paid and lost is the floor of what ran; nothing is made or lost."""
    tariff = Tariff([Price(1, "gpu_hour", "H100", "", rate, 0, 0, 0, "config", 0.0)])
    books = dict.fromkeys(("available", "held", "revenue", "loss"), 0) | {"available": funds}
    bill, remainders, charged, now = msgspec.structs.replace(BILL, held=0), {1: 0}, 0, 0
    for index, wait in enumerate(looks):
        now += wait
        ended = stops and index == len(looks) - 1
        ready = Run(1, "acc", 5, "r", "eu", "H100", 1, 0, now, charged, open=True, billed=True)
        found = settle(bill, [ready], tariff, TERMS, remainders, books["available"], now, ended=ended)
        if found is None:
            continue
        for transfer in found.transfers:
            assert transfer.amount > 0
            books[transfer.source] -= transfer.amount
            books[transfer.target] += transfer.amount
            assert books["available"] >= 0
            assert books["held"] >= 0
        assert books["held"] == found.held
        remainders |= found.remainders
        charged = found.charged.get(1, charged)
        bill = msgspec.structs.replace(bill, held=found.held, number=bill.number + 1)
        assert books["revenue"] == rate * charged // HOUR_MS
        if found.stop:
            assert books["available"] == 0
            break
    assert sum(books.values()) == funds
