"""Amounts as text and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.core.errors import InvalidRequestError
from pillion.core.money import Wallet, decimal, micros


@pytest.mark.parametrize(
    ("text", "amount"),
    [("0", 0), ("2.49", 2_490_000), ("0.000001", 1), ("1.10000000", 1_100_000), ("100", 100_000_000)],
)
def test_decimals_are_read_exactly(text: str, amount: int) -> None:
    assert micros(text) == amount


@pytest.mark.parametrize("text", ["", "-1", "1e3", "0.0000001", ".5", "1,5", "NaN", "9" * 16, "²"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="is no amount") as caught:
        micros(text, "rate")
    assert caught.value.param == "rate"


@given(st.integers(0, 10**15))
def test_there_and_back(amount: int) -> None:
    assert micros(decimal(amount)) == amount
    assert decimal(-amount) == ("-" if amount else "") + decimal(amount)


def test_shown_with_two_places_at_least() -> None:
    assert [decimal(n) for n in (0, 1, 2_490_000, 1_000_000, -500_000)] == [
        "0.00",
        "0.000001",
        "2.49",
        "1.00",
        "-0.50",
    ]


def test_what_is_set_aside_is_not_free() -> None:
    assert Wallet("a", 10, 5, 3, 4).free == 3
    assert Wallet("a", 10, 5, 8, 4).free == 0
