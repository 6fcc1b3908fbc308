"""What an agent counts of the residency it tells."""

from __future__ import annotations

import re

from pillion.agent.board import Board
from pillion.agent.metrics import Metrics
from pillion.core.replica import Residency
from tests.replicas import replica_spec


def told(name: str, state: str, load_ms: float | None = None) -> Residency:
    return Residency(name, state, 0.0, load_ms=load_ms)  # type: ignore[arg-type]


class Told:
    def __init__(self) -> None:
        self.board = Board(replica_spec(), "epoch", lambda: 0.0)
        self.metrics = Metrics(self.board)

    def now(self, *rows: Residency) -> None:
        self.metrics.changed(self.board.status.adapters, rows)
        self.board.post(adapters=rows)

    def value(self, series: str) -> float:
        text = self.metrics.text().decode()
        found = re.search(rf"^pillion_agent_{re.escape(series)} (\S+)$", text, re.MULTILINE)
        assert found, f"{series} is not in\n{text}"
        return float(found[1])


def test_loads_and_unloads_are_counted_once() -> None:
    agent = Told()
    agent.now(told("a", "loading"))
    agent.now(told("a", "loaded", 20.0), told("b", "loading"))
    agent.now(told("a", "loaded", 20.0), told("b", "loaded", 40.0))
    agent.now(told("a", "evicting", 20.0), told("b", "loaded", 40.0))
    assert agent.value("slots_used") == 2
    assert agent.value("unloads_total") == 0
    agent.now(told("b", "loaded", 40.0))
    assert agent.value("load_seconds_count") == 2
    assert round(agent.value("load_seconds_sum"), 6) == 0.06
    assert agent.value('load_seconds_bucket{le="0.025"}') == 1
    assert agent.value("unloads_total") == 1
    assert agent.value('adapters{state="loaded"}') == 1
    assert agent.value('adapters{state="evicting"}') == 0


def test_what_an_agent_found_loaded_is_no_load_of_its() -> None:
    agent = Told()
    agent.now(told("a", "loaded"))
    assert agent.value("load_seconds_count") == 0
    assert agent.value("slots_used") == 1


def test_failures() -> None:
    agent = Told()
    agent.now(told("a", "loading"))
    agent.now(told("a", "failed"))
    agent.now(told("a", "failed"))
    agent.now(told("a", "loading"))
    agent.now(told("a", "failed"))
    assert agent.value("load_failures_total") == 2


def test_stage_and_restarts() -> None:
    agent = Told()
    agent.board.post(stage="ready", ready=True, restarts=3, grant_version=7)
    assert agent.value('stage{stage="ready"}') == 1
    assert agent.value('stage{stage="starting"}') == 0
    assert agent.value("ready") == 1
    assert agent.value("restarts_total") == 3
    assert agent.value("grant_version") == 7
