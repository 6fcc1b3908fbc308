"""Control's own metrics. Labels are bounded: regions, stages, states; never accounts or adapters.

Counted in plain numbers; what can be looked up is looked up when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pillion.core.replica import ReplicaStatus

if TYPE_CHECKING:
    from pillion.control.context import Control

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TICK_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
HOLDING = ("loading", "loaded", "evicting")


class Counts:
    """What is counted as it happens."""

    def __init__(self) -> None:
        self.leads = False
        self.grants = 0
        self.ticks_failed = 0
        self.ledger_mismatches = 0
        self.tick_seconds = 0.0
        self.ticks = [0] * (len(TICK_BUCKETS) + 1)

    def ticked(self, seconds: float) -> None:
        self.ticks[bisect_left(TICK_BUCKETS, seconds)] += 1
        self.tick_seconds += seconds


async def page(control: Control) -> bytes:
    """In Prometheus' text format. Raises `UnavailableError` where the database is away."""
    async with control.db.read() as tx:
        states = await tx.everyone.states()
    registry = CollectorRegistry()
    registry.register(_Page(control, states))
    return generate_latest(registry)


class _Page(Collector):
    def __init__(self, control: Control, states: Mapping[str, Mapping[str, int]]) -> None:
        self._control = control
        self._states = states

    def collect(self) -> Iterator[Metric]:
        counts, control = self._control.counts, self._control
        yield _gauge("leader", "1 while this control acts; one of several does", float(counts.leads))
        yield _ticks(counts)
        yield _counter("ticks_failed", "Rounds of the controller that an error ended", counts.ticks_failed)
        yield _counter("grants_sent", "Grants that agents took", counts.grants)
        yield _gauge("snapshot_version", "Newest version of the snapshot", control.publisher.version)
        known, behind = control.gateways.known, len(control.gateways.behind(control.publisher.version))
        gateways = [("current", known - behind), ("behind", behind)]
        yield _by(
            "gateways", "Connected gateways, by whether they have the newest snapshot", "state", gateways
        )
        yield from _replicas(control.agents.facts)
        for noun in ("instances", "attachments", "jobs"):
            yield _by(noun, f"{noun.capitalize()} by state", "state", self._states[noun].items())
        yield _gauge(
            "ledger_mismatches",
            "Accounts whose balance is not the sum of its entries; anything but 0 is an error of ours",
            counts.ledger_mismatches,
        )


def _replicas(facts: Mapping[str, ReplicaStatus]) -> Iterator[Metric]:
    stages: Counter[tuple[str, str]] = Counter()
    slots: Counter[str] = Counter()
    used: Counter[str] = Counter()
    for status in facts.values():
        stages[status.region, status.stage] += 1
        slots[status.region] += status.slots
        used[status.region] += sum(1 for adapter in status.adapters if adapter.state in HOLDING)
    family = GaugeMetricFamily(
        "pillion_control_replicas", "Replicas whose agent is heard", labels=["region", "stage"]
    )
    for labels, count in stages.items():
        family.add_metric(labels, count)
    yield family
    yield _by("slots", "Room for adapters in engines, surge slots included", "region", slots.items())
    yield _by("slots_used", "Of that, what is taken", "region", used.items())


def _ticks(counts: Counts) -> Metric:
    family = HistogramMetricFamily("pillion_control_tick_seconds", "Rounds of the controller", labels=[])
    bounds = [*map(str, TICK_BUCKETS), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(counts.ticks)), strict=True))
    family.add_metric([], buckets, sum_value=counts.tick_seconds)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"pillion_control_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"pillion_control_{name}", text, value=value)


def _by(name: str, text: str, label: str, found: Iterable[tuple[str, int]]) -> Metric:
    family = GaugeMetricFamily(f"pillion_control_{name}", text, labels=[label])
    for value, count in found:
        family.add_metric([value], count)
    return family
