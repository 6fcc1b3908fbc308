"""An agent's metrics: of one replica, so labels name stages and states alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pillion.agent.board import Board
from pillion.core.replica import Residency, ResidencyState, Stage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LOAD_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STAGES: tuple[str, ...] = get_args(Stage)
STATES: tuple[str, ...] = get_args(ResidencyState)
HOLDING = ("loading", "loaded", "evicting")


class Metrics(Collector):
    """What the board says, and what was counted of its changes."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._loads = [0] * (len(LOAD_BUCKETS) + 1)
        self._load_seconds = 0.0
        self._unloads = self._failures = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def changed(self, before: Iterable[Residency], after: Iterable[Residency]) -> None:
        """Residency as it was told last, and as it is."""
        old, new = ({row.engine_name: row for row in rows} for rows in (before, after))
        for name, row in new.items():
            was = old.get(name)
            if was is not None and was.state == row.state:
                continue
            if row.state == "loaded" and row.load_ms is not None:
                self._loads[bisect_left(LOAD_BUCKETS, row.load_ms / 1000)] += 1
                self._load_seconds += row.load_ms / 1000
            elif row.state == "failed":
                self._failures += 1
        for name, row in old.items():
            there = new.get(name)
            if row.state in ("loaded", "evicting") and (there is None or there.state not in HOLDING):
                self._unloads += 1

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        status = self._board.status
        yield _by("stage", "1 for the stage that the replica is in", "stage", [(status.stage, 1)], STAGES)
        yield GaugeMetricFamily(
            "pillion_agent_ready", "1 while the engine answers", value=float(status.ready)
        )
        yield CounterMetricFamily(
            "pillion_agent_restarts", "Times the engine went down", value=status.restarts
        )
        yield GaugeMetricFamily(
            "pillion_agent_grant_version", "The grant in force", value=status.grant_version
        )
        yield GaugeMetricFamily(
            "pillion_agent_slots", "Room for adapters, the surge slot included", value=status.slots
        )
        states: list[str] = [row.state for row in status.adapters]
        used = sum(state in HOLDING for state in states)
        yield GaugeMetricFamily("pillion_agent_slots_used", "Of that, what is taken", value=used)
        counted = [(state, states.count(state)) for state in STATES]
        yield _by("adapters", "Adapters by state", "state", counted, STATES)
        yield CounterMetricFamily("pillion_agent_unloads", "Adapters taken out", value=self._unloads)
        yield CounterMetricFamily("pillion_agent_load_failures", "Loads that failed", value=self._failures)
        yield self._load_times()

    def _load_times(self) -> Metric:
        family = HistogramMetricFamily(
            "pillion_agent_load_seconds", "Loads, from the start to the engine's word", labels=[]
        )
        bounds = [*map(str, LOAD_BUCKETS), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(self._loads)), strict=True))
        family.add_metric([], buckets, sum_value=self._load_seconds)
        return family


def _by(name: str, text: str, label: str, found: Iterable[tuple[str, int]], known: Iterable[str]) -> Metric:
    """With a series for each of the `known` values."""
    family = GaugeMetricFamily(f"pillion_agent_{name}", text, labels=[label])
    counts = dict.fromkeys(known, 0) | dict(found)
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
