"""Which price holds when; time split exactly where prices change."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.billing.tariff import Part, Tariff, Terms, carried
from pillion.core.money import HOUR_MS, Price


def gpu(id: int, effective: int, hourly: int, region: str = "", item: str = "H100") -> Price:
    return Price(id, "gpu_hour", item, region, hourly, 0, 0, effective, "config", 0.0)


def tokens(id: int, effective: int, input: int, output: int) -> Price:
    return Price(id, "tokens", "tiny", "", 0, input, output, effective, "config", 0.0)


TARIFF = Tariff(
    [gpu(1, 100, 10), gpu(2, 200, 20), gpu(3, 150, 50, "eu"), tokens(4, 100, 7, 9), tokens(5, 200, 8, 10)]
)


@pytest.mark.parametrize(
    ("region", "at", "price"),
    [
        ("us", 99, None),
        ("us", 100, 1),
        ("us", 199, 1),
        ("us", 200, 2),
        ("eu", 149, 1),
        ("eu", 150, 3),
        ("eu", 900, 3),
    ],
)
def test_the_latest_that_has_taken_effect_the_regions_own_first(
    region: str, at: int, price: int | None
) -> None:
    found = TARIFF.gpu("H100", region, at)
    assert (found and found.id) == price


def test_what_has_no_price_is_free() -> None:
    assert TARIFF.gpu("A10", "eu", 500) is None
    assert TARIFF.time("A10", 1, "eu", 0, 500) == []
    assert TARIFF.hourly(Terms("A10", 8, {"eu": 3}), 500) == 0
    assert not TARIFF.priced("tiny", 99)
    assert TARIFF.tokens("tiny", 99, 5, 5) is None


def test_time_is_split_where_prices_change() -> None:
    assert TARIFF.time("H100", 2, "eu", 50, 250) == [
        Part(1, 10 * 2 * 50, HOUR_MS),
        Part(3, 50 * 2 * 50, HOUR_MS),
        Part(3, 50 * 2 * 50, HOUR_MS),
    ]
    assert TARIFF.time("H100", 1, "us", 200, 200) == []


def test_tokens_by_the_price_of_their_time() -> None:
    assert TARIFF.tokens("tiny", 199, 2, 3) == Part(4, 2 * 7 + 3 * 9, 1_000_000)
    assert TARIFF.tokens("tiny", 200, 2, 3) == Part(5, 2 * 8 + 3 * 10, 1_000_000)


def test_a_hold_is_of_all_replicas_for_a_day() -> None:
    terms = Terms("H100", 2, {"eu": 1, "us": 3})
    assert TARIFF.hourly(terms, 300) == 2 * 50 + 2 * 3 * 20
    assert TARIFF.hold(terms, 300) == 24 * TARIFF.hourly(terms, 300)


prices = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 10**7), st.sampled_from(["", "eu"])), max_size=8
)


@given(prices, st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_time_in_pieces_costs_what_it_costs_at_once(
    changes: list[tuple[int, int, str]], a: int, b: int, c: int
) -> None:
    tariff = Tariff([gpu(n, at, hourly, region) for n, (at, hourly, region) in enumerate(changes, 1)])
    a, b, c = sorted((a, b, c))

    def cost(began: int, ended: int) -> int:
        return sum(part.numerator for part in tariff.time("H100", 3, "eu", began, ended))

    assert cost(a, b) + cost(b, c) == cost(a, c)
    every = sum(price.hourly * 3 for at in range(a, c) if (price := tariff.gpu("H100", "eu", at)))
    assert cost(a, c) == every


@given(st.lists(st.integers(0, 10**13), max_size=30), st.integers(0, 5))
def test_nothing_is_lost_to_rounding(numerators: list[int], pieces: int) -> None:
    """However the parts are grouped, what was charged is the floor of all that was used."""
    remainder, charged = 0, 0
    step = pieces + 1
    for start in range(0, len(numerators), step):
        parts = [Part(1, n, HOUR_MS) for n in numerators[start : start + step]]
        whole, remainder = carried(parts, {1: remainder})[1]
        charged += whole
    assert charged == Fraction(sum(numerators), HOUR_MS).__floor__()
