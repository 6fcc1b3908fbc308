"""The gateway's own metrics. Labels are bounded: kinds, statuses and reasons, never accounts, and adapters up to a number.

Counted in plain numbers, which cost a request nothing; Prometheus' types are made when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pillion.core import COMPILED
from pillion.core.snapshot import Adapter
from pillion.gateway.knowledge import Knowledge

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_VERSIONS = 2000  # series of adapters' versions; those that come later are counted together
FIRST_BYTE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class _Histogram:
    """How many fell into each of `FIRST_BYTE_BUCKETS`, or above, and the sum of all."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(FIRST_BYTE_BUCKETS) + 1)
        self.sum = 0.0


class Metrics(Collector):
    """One registry per gateway, so that several may live in one process."""

    def __init__(
        self,
        knowledge: Knowledge,
        usage_behind: Callable[[], int] = lambda: 0,
        limits_open: Callable[[], bool] = lambda: False,
    ) -> None:
        self._knowledge = knowledge
        self._usage_behind, self._limits_open = usage_behind, limits_open
        self.page: Callable[[bytes], bytes] = lambda own: own
        self.waiting: Callable[[], int] = lambda: 0
        self.connections: Callable[[], int] = lambda: 0
        self.usage_damaged: Callable[[], int] = lambda: 0
        self.usage_failed: Callable[[], int] = lambda: 0
        self._held_back: Counter[str] = Counter()
        self._requests: dict[tuple[str, int], int] = {}
        self._in_flight: dict[str, int] = {}
        self._retries: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._versions: dict[tuple[str, int | None, int], int] = {}
        self._quarantines = 0
        self._cold_loads: Counter[str] = Counter()
        self._first_byte: dict[str, _Histogram] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def taken(self, kind: str) -> None:
        """A request has come."""
        self._in_flight[kind] = self._in_flight.get(kind, 0) + 1

    def answered(self, kind: str, status: int) -> None:
        """`status` as the client got it; 499 where it left before."""
        self._in_flight[kind] = self._in_flight.get(kind, 0) - 1
        labels = kind, status
        self._requests[labels] = self._requests.get(labels, 0) + 1

    def malformed(self, status: int) -> None:
        """What came was no request."""
        labels = "malformed", status
        self._requests[labels] = self._requests.get(labels, 0) + 1

    def first_byte(self, kind: str, seconds: float) -> None:
        histogram = self._first_byte.get(kind)
        if histogram is None:
            histogram = self._first_byte[kind] = _Histogram()
        histogram.counts[bisect_left(FIRST_BYTE_BUCKETS, seconds)] += 1
        histogram.sum += seconds

    def retried(self, reason: str) -> None:
        self._retries[reason] += 1

    def failed(self, reason: str) -> None:
        self._failures[reason] += 1

    def version_answered(self, adapter: Adapter, status: int) -> None:
        """A request that an engine was asked for with this version of an adapter."""
        series = adapter.id, adapter.version, status
        count = self._versions.get(series)
        if count is None:
            if len(self._versions) >= MAX_VERSIONS:
                series = "other", None, status
            count = self._versions.get(series, 0)
        self._versions[series] = count + 1

    def cold_load(self, result: str) -> None:
        """An agent was asked to load, and what came of it."""
        self._cold_loads[result] += 1

    def held_back(self, reason: str) -> None:
        """A request was refused for what its account, or all together, took of shared pools."""
        self._held_back[reason] += 1

    def quarantined(self) -> None:
        self._quarantines += 1

    def text(self) -> bytes:
        """What a scrape gets: this process's numbers on the page of all workers."""
        return self.page(self.own())

    def own(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Prometheus' view, made now."""
        requests = ((labels, count) for labels, count in self._requests.items())
        yield _counter("pillion_gateway_requests", "Requests answered", ("kind", "status"), requests)
        versions = (
            ((adapter, "" if version is None else version, status), count)
            for (adapter, version, status), count in self._versions.items()
        )
        yield _counter(
            "pillion_gateway_adapter_requests",
            "Requests answered through adapters",
            ("adapter", "version", "status"),
            versions,
        )
        flying = GaugeMetricFamily("pillion_gateway_in_flight", "Requests being answered", labels=["kind"])
        for kind, count in self._in_flight.items():
            flying.add_metric([kind], count)
        yield flying
        yield GaugeMetricFamily(
            "pillion_gateway_connections", "Connections of clients", value=self.connections()
        )
        yield GaugeMetricFamily(
            "pillion_gateway_compiled", "1 where it runs as machine code", value=float(COMPILED is not None)
        )
        retries = (((reason,), count) for reason, count in self._retries.items())
        yield _counter("pillion_gateway_retries", "Requests sent to another replica", ("reason",), retries)
        failures = (((reason,), count) for reason, count in self._failures.items())
        yield _counter("pillion_gateway_upstream_failures", "Failures of replicas", ("reason",), failures)
        yield _counter(
            "pillion_gateway_quarantines",
            "Adapters refused for a while, because two replicas died holding a request for one",
            (),
            [((), self._quarantines)],
        )
        loads = (((result,), count) for result, count in self._cold_loads.items())
        yield _counter("pillion_gateway_cold_loads", "Replicas asked to load on demand", ("result",), loads)
        held_back = (((reason,), count) for reason, count in self._held_back.items())
        yield _counter(
            "pillion_gateway_pool_refusals",
            "Requests refused for what was taken of shared pools already",
            ("reason",),
            held_back,
        )
        yield GaugeMetricFamily(
            "pillion_gateway_pool_waiting",
            "Requests that wait for a turn on a shared pool",
            value=self.waiting(),
        )
        yield GaugeMetricFamily(
            "pillion_gateway_usage_behind",
            "Usage events that control does not have yet",
            value=self._usage_behind(),
        )
        yield GaugeMetricFamily(
            "pillion_gateway_usage_damaged",
            "Places in logs of usage that could not be read since this process began",
            value=self.usage_damaged(),
        )
        yield _counter(
            "pillion_gateway_usage_failed",
            "Usage events that could not be written, and are told as lost by the next process",
            (),
            [((), self.usage_failed())],
        )
        yield GaugeMetricFamily(
            "pillion_gateway_limits_open",
            "1 while limits of keys are not shared with other gateways, control being away",
            value=float(self._limits_open()),
        )
        yield self._first_bytes()
        yield GaugeMetricFamily(
            "pillion_gateway_snapshot_version",
            "Version of the snapshot that is applied",
            value=self._knowledge.version,
        )
        yield GaugeMetricFamily(
            "pillion_gateway_snapshot_age_seconds",
            "Since control last confirmed the snapshot",
            value=self._knowledge.age,
        )

    def _first_bytes(self) -> Metric:
        family = HistogramMetricFamily(
            "pillion_gateway_first_byte_seconds",
            "From a request's arrival to its answer's first byte",
            labels=["kind"],
        )
        bounds = [*map(str, FIRST_BYTE_BUCKETS), "+Inf"]
        for kind, found in self._first_byte.items():
            buckets = list(zip(bounds, map(float, accumulate(found.counts)), strict=True))
            family.add_metric([kind], buckets, sum_value=found.sum)
        return family


def _counter(
    name: str, text: str, labels: tuple[str, ...], counts: Iterable[tuple[tuple[object, ...], int]]
) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts:
        family.add_metric([str(value) for value in values], count)
    return family
