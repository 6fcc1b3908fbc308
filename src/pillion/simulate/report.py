"""What came of it, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from pillion.simulate.bound import belady
from pillion.simulate.costs import EngineCosts
from pillion.simulate.play import Clock, Counted, Play
from pillion.simulate.policies import Chooser, Orders, policies
from pillion.simulate.trace import Trace

NAMES = ("pillion", "round-robin-lru", "hashing-lru")


@dataclass(frozen=True)
class Fleet:
    replicas: int
    slots: int
    costs: EngineCosts


@dataclass(frozen=True)
class Outcome:
    """Of one policy. Rates are in [0, 1]; `max_over_mean` is the requests of the hottest replica over those of the mean.

    `ttft_ms`: `p50` and `p99` of the time to the first token. `hits_over_time` is of equal parts of the trace.
    """

    requests: int
    hit_rate: float
    cold_starts: int
    refused: int
    loads: int
    evictions: int
    ttft_ms: Mapping[str, float]
    max_over_mean: float
    hits_over_time: Sequence[float]


@dataclass(frozen=True)
class Report:
    """`belady`: the highest hit rate that is possible."""

    requests: int
    warm_up: int
    adapters_asked_for: int
    seconds: float
    policies: Mapping[str, Outcome]
    belady: float

    def document(self) -> dict[str, object]:
        return asdict(self)


def simulate(
    trace: Trace,
    fleet: Fleet,
    chooser: Callable[[Callable[[], float]], Chooser],
    names: Sequence[str] = NAMES,
    warm_up: float = 0.2,
    progress: Callable[[str], None] = lambda name: None,
) -> Report:
    """Every policy of `names` over the same trace. The first part `warm_up` of it is played and not counted.

    `chooser` makes a gateway's choice for a clock. `progress` is told what begins.
    """
    start = int(len(trace) * warm_up)
    orders, found = Orders(fleet.replicas, trace.names), {}
    for name in names:
        progress(name)
        clock = Clock()
        policy = policies(orders, chooser(clock))[name]()
        play = Play(trace, policy, fleet.replicas, fleet.slots, fleet.costs, clock)
        found[name] = outcome(play.run(start))
    progress("belady")
    counted = len(trace) - start
    best = belady(trace.adapter, fleet.replicas * fleet.slots, start) / counted
    return Report(len(trace), start, len(set(trace.adapter)), trace.at[-1], found, best)


def outcome(counted: Counted) -> Outcome:
    times = sorted(counted.first_tokens)
    mean = sum(counted.served) / len(counted.served)
    return Outcome(
        requests=counted.requests,
        hit_rate=counted.hits / counted.requests,
        cold_starts=counted.cold,
        refused=counted.refused,
        loads=counted.loads,
        evictions=counted.evictions,
        ttft_ms={"p50": _quantile(times, 0.5), "p99": _quantile(times, 0.99)},
        max_over_mean=max(counted.served) / mean if mean else 0.0,
        hits_over_time=[hits / asked if asked else 0.0 for hits, asked in counted.parts],
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
