"""Decimals are typed and shown; 1e-6 of the currency travel."""

from __future__ import annotations

import pytest
import typer

from pillion.cli.output import micros, money


@pytest.mark.parametrize(
    ("text", "amount"), [("2.49", 2_490_000), ("0.000001", 1), ("7", 7_000_000), ("0.10", 100_000)]
)
def test_decimals_are_exact(text: str, amount: int) -> None:
    assert micros(text) == amount
    assert micros(money(amount)) == amount


@pytest.mark.parametrize("text", ["", "-1", "1e3", "0.1234567", "1,5", "x", "٣"])
def test_what_is_no_amount_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no amount"):
        micros(text)


def test_below_zero() -> None:
    assert [money(n) for n in (-2_490_000, -1, 0)] == ["-2.49", "-0.000001", "0.00"]
