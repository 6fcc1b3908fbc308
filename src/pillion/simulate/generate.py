"""Made-up traffic: adapters asked for by Zipf's law, whose popularity drifts, that come in bursts, by day and by night."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from pillion.simulate.trace import PROMPT_TOKENS, TOKENS, Trace

# Of ranks 8 to 64 on all linear layers of a base with 7 to 8 billion parameters, in 16 bits.
SIZES_MB = (20, 40, 80, 160)
_BURST_SHARE, _BURST_LENGTH, _DAYS = 0.2, 0.01, 2


@dataclass(frozen=True)
class Traffic:
    """`rate` is requests per second, `zipf` the exponent (0: all alike).

    `drift`: how likely it is, at each request, that two adapters exchange their popularity. `bursts`: so many times one
    adapter gets a fifth of the requests during a hundredth of the time. `diurnal`: how far the rate swings around `rate`, in
    [0, 1), over two days in the length of the trace.
    """

    adapters: int = 1000
    requests: int = 100_000
    rate: float = 16.0
    zipf: float = 1.0
    drift: float = 0.0
    bursts: int = 0
    diurnal: float = 0.0


def generate(traffic: Traffic, seed: int) -> Trace:
    rng = random.Random(seed)  # noqa: S311 (a simulation)
    count = traffic.requests
    return Trace(
        array("d", _moments(traffic, rng)),
        array("l", _adapters(traffic, rng)),
        array("l", (1 + int(rng.expovariate(1 / PROMPT_TOKENS)) for _ in range(count))),
        array("l", (1 + int(rng.expovariate(1 / TOKENS)) for _ in range(count))),
        [f"adapter-{number}" for number in range(traffic.adapters)],
        [1_000_000 * size for size in rng.choices(SIZES_MB, k=traffic.adapters)],
    )


def _moments(traffic: Traffic, rng: random.Random) -> Iterator[float]:
    day = traffic.requests / traffic.rate / _DAYS
    now = 0.0
    for _ in range(traffic.requests):
        swing = traffic.diurnal * math.sin(2 * math.pi * now / day)
        now += rng.expovariate(traffic.rate * (1 + swing))
        yield now


def _adapters(traffic: Traffic, rng: random.Random) -> Iterator[int]:
    weights = list(accumulate((rank + 1) ** -traffic.zipf for rank in range(traffic.adapters)))
    ranks = rng.choices(range(traffic.adapters), cum_weights=weights, k=traffic.requests)
    by_rank = list(range(traffic.adapters))
    rng.shuffle(by_rank)
    bursts = _bursts(traffic, rng)
    for number, rank in enumerate(ranks):
        if traffic.drift and rng.random() < traffic.drift:
            one, other = rng.randrange(traffic.adapters), rng.randrange(traffic.adapters)
            by_rank[one], by_rank[other] = by_rank[other], by_rank[one]
        burst = bursts.get(int(number / (_BURST_LENGTH * traffic.requests)))
        if burst is not None and rng.random() < _BURST_SHARE:
            yield burst
        else:
            yield by_rank[rank]


def _bursts(traffic: Traffic, rng: random.Random) -> dict[int, int]:
    """From hundredths of the trace to the adapter that has its burst there."""
    hundredths = rng.sample(range(int(1 / _BURST_LENGTH)), min(traffic.bursts, int(1 / _BURST_LENGTH)))
    return {hundredth: rng.randrange(traffic.adapters) for hundredth in hundredths}
