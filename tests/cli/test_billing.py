"""Decimals are typed and shown on a terminal; 1e-6 of the currency travel, to pipes too."""

from __future__ import annotations

import pytest
import typer
from fake_api import FakeApi, Run

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


def test_transactions(run: Run, api: FakeApi, terminal: None) -> None:
    assert "2.49" in run("transactions", "--kind", "topup").stdout
    assert api.requests[-1][1].startswith("/v1/billing/transactions?kind=topup")
    assert "thanks" in run("credits", "list", "acc_1").stdout
    assert "account=acc_1" in api.requests[-1][1]


def test_balance(run: Run, terminal: None) -> None:
    shown = run("balance").stdout
    assert "2.49" in shown
    assert "1.50" in shown
    assert '"paid": 1500000' in run("balance", "--json").stdout


def test_credits_are_given_in_decimals(run: Run, api: FakeApi) -> None:
    assert run("credits", "give", "acc_1", "2.49", "--key", "k7").exit_code == 0
    assert api.requests[-1][2] == {
        "account": "acc_1",
        "amount": 2_490_000,
        "kind": "topup",
        "note": "",
        "key": "k7",
    }
    run("credits", "give", "acc_1", "5", "--kind", "admin_correction", "--take")
    assert api.requests[-1][2]["amount"] == -5_000_000
    assert run("credits", "give", "acc_1", "much").exit_code == 2


def test_prices(run: Run, api: FakeApi) -> None:
    assert run("prices", "list").stdout.split("\t")[:4] == ["gpu_hour", "H100", "eu-1", "2490000"]
    run("prices", "set-gpu", "H100", "2.49", "--region", "eu-1", "--from", "1700000000")
    assert api.requests[-1][2] == {
        "kind": "gpu_hour",
        "item": "H100",
        "hourly": 2_490_000,
        "region": "eu-1",
        "effective_at": 1_700_000_000.0,
    }
    run("prices", "set-model", "tiny", "0.10", "0.40")
    assert api.requests[-1][2] == {"kind": "tokens", "item": "tiny", "input": 100_000, "output": 400_000}
