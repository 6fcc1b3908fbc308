"""Limits of keys at one gateway, and over several of them through control."""

from __future__ import annotations

import pytest

from pillion.control.shares import LimitShares
from pillion.core.errors import RateLimitError
from pillion.core.snapshot import Key
from pillion.core.usage import Demand, Share, Shares, Taken
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.limits import OPEN_AFTER_S, KeyLimits
from pillion.gateway.metrics import Metrics
from pillion.gateway.reports import Sharing, UntoldError

KEY = Key("key", "acc", "d", ("inference",), requests_per_minute=60, tokens_per_minute=600)
FREE = Key("free", "acc", "d", ("inference",))


def served(limits: KeyLimits, count: int, now: float, key: Key = KEY) -> int:
    return sum(limits.check(key, now) is None for _ in range(count))


def test_requests_per_minute() -> None:
    limits = KeyLimits(0.0)
    assert served(limits, 100, 0.0) == 60
    refusal = limits.check(KEY, 0.0)
    assert isinstance(refusal, RateLimitError)
    assert (refusal.status, refusal.code, refusal.headers()["retry-after"]) == (
        429,
        "rate_limit_exceeded",
        "1",
    )
    assert served(limits, 100, 10.0) == 10


def test_tokens_are_counted_when_they_are_known_and_paid_back_over_time() -> None:
    limits = KeyLimits(0.0)
    assert limits.check(KEY, 0.0) is None
    limits.spent(KEY, 1200, 0.0)
    assert limits.check(KEY, 30.0) is not None
    assert limits.check(KEY, 61.0) is None


def test_fields_tell_what_is_left() -> None:
    limits = KeyLimits(0.0)
    limits.check(KEY, 0.0)
    limits.spent(KEY, 100, 0.0)
    assert dict(limits.fields(KEY, 0.0)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1000ms",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "500",
        "x-ratelimit-reset-tokens": "10000ms",
    }


def test_a_key_without_limits_is_free() -> None:
    limits = KeyLimits(0.0)
    assert served(limits, 1000, 0.0, FREE) == 1000
    assert limits.fields(FREE, 0.0) == ()
    assert limits.demand("g", 0.0) == Demand("g", {}, {})


def test_new_limits_of_a_key_count_at_once() -> None:
    limits = KeyLimits(0.0)
    assert served(limits, 100, 0.0) == 60
    assert served(limits, 100, 0.0, Key("key", "acc", "d", ("inference",), requests_per_minute=5)) == 5


def test_three_gateways_share_one_limit_by_what_is_asked_of_them() -> None:
    now = 0.0
    control = LimitShares(lambda: now)
    gateways = {name: KeyLimits(0.0) for name in ("a", "b", "c")}
    load = {"a": 20, "b": 4, "c": 0}
    answered = dict.fromkeys(gateways, 0)
    for second in range(600):
        now = float(second)
        for name, limits in gateways.items():
            count = served(limits, load[name], now)
            answered[name] += count if second >= 300 else 0
            demand = limits.demand(name, now)
            if demand.requests:
                limits.shared(control.told(demand), now)
    minutes = 5
    assert 55 <= sum(answered.values()) / minutes <= 61
    assert 3 < answered["a"] / answered["b"] < 6


@pytest.mark.parametrize(("count", "stay_s"), [(4, None), (3, 20), (8, 10)])
def test_many_gateways_give_no_more_than_one_however_requests_move(count: int, stay_s: int | None) -> None:
    """At once what each of them has, which is paid back: in the end, the limit."""
    now, each = 0.0, 10
    control = LimitShares(lambda: now)
    gateways = {str(n): KeyLimits(0.0) for n in range(count)}
    answered = 0
    for second in range(600):
        now = float(second)
        here = set(gateways) if stay_s is None else {str(second // stay_s % count)}
        for name, limits in gateways.items():
            answered += served(limits, each, now) if name in here else 0
            demand = limits.demand(name, now)
            if demand.requests:
                limits.shared(control.told(demand), now)
        unseen = each * len(here)  # of a second in which they do not know of each other
        assert answered <= 60 + second + unseen, second
    assert answered >= 0.9 * 600


def test_what_all_took_is_known_to_one_that_begins_and_outlives_control() -> None:
    control = LimitShares(lambda: 0.0)
    one, two = KeyLimits(0.0), KeyLimits(0.0)
    assert served(one, 60, 0.0) == 60
    one.shared(control.told(one.demand("one", 0.0)), 0.0)
    control = LimitShares(lambda: 0.0)
    served(one, 1, 0.0)
    one.shared(control.told(one.demand("one", 0.0)), 0.0)
    assert served(two, 1, 0.0) == 1
    two.shared(control.told(two.demand("two", 0.0)), 0.0)
    assert served(two, 1, 0.0) == served(one, 1, 0.0) == 0


def test_control_away_leaves_the_share_for_a_while_and_then_the_limit_is_open() -> None:
    limits = KeyLimits(0.0)
    served(limits, 60, 0.0)
    limits.demand("g", 0.0)
    half = {"key": Share(0.5, 0.0)}
    limits.shared(Shares(half, half), 0.0)
    assert not limits.unheard(OPEN_AFTER_S - 1)
    assert served(limits, 100, 8.0) == 4
    assert limits.unheard(OPEN_AFTER_S + 1)
    assert served(limits, 100, 60.0) >= 40


@pytest.mark.parametrize("every_s", [1, 4])
async def test_the_limit_is_open_while_control_is_away_however_seldom_it_is_asked_for(every_s: int) -> None:
    """And a metric tells of it, until control is back."""
    now, away = [0.0], [False]

    class Ledger:
        async def demand(self, demand: Demand) -> Shares:
            if away[0]:
                raise UntoldError
            half = Share(0.5, 0.0)
            return Shares(dict.fromkeys(demand.requests, half), dict.fromkeys(demand.tokens, half))

    limits = KeyLimits(0.0)
    sharing = Sharing(Ledger(), limits, "g", lambda: now[0])  # type: ignore[arg-type]
    metrics = Metrics(Knowledge(lambda: now[0], 1.0), lambda: 0, lambda: sharing.open)
    served(limits, 60, 0.0)
    await sharing.step()
    away[0] = True
    for second in range(1, 17):
        now[0] = float(second)
        if second % every_s == 0:
            limits.check(KEY, now[0])
        await sharing.step()
        assert sharing.open == (second >= OPEN_AFTER_S + every_s - 1)  # from when it was asked last
        assert f"pillion_gateway_limits_open {float(sharing.open)}\n".encode() in metrics.own()
    away[0] = False
    now[0] += 1
    await sharing.step()
    assert not sharing.open


def test_what_is_idle_is_forgotten() -> None:
    limits = KeyLimits(0.0)
    served(limits, 1, 0.0)
    assert limits.demand("g", 1.0).requests == {"key": Taken(1, 1, 60, 60)}
    limits.demand("g", 1000.0)
    assert limits._buckets == {}


def test_what_is_idle_is_not_forgotten_while_it_owes() -> None:
    limits = KeyLimits(0.0)
    served(limits, 1, 0.0)
    limits.spent(KEY, 60 * 600, 0.0)
    limits.demand("g", 1.0)
    limits.demand("g", 1000.0)
    assert limits.check(KEY, 1000.0) is not None
    limits.demand("g", 1001.0)
    limits.demand("g", 61 * 60.0)
    assert limits._buckets == {}
