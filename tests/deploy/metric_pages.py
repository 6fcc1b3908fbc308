"""The pages of metrics of every part, with something in every family."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry, generate_latest

from pillion.agent.board import Board
from pillion.agent.metrics import Metrics as AgentMetrics
from pillion.control.metrics import Counts, _Page
from pillion.control.snapshots import Gateways
from pillion.core.replica import ReplicaStatus
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.metrics import Metrics as GatewayMetrics
from tests.gateway.world import make_adapter
from tests.replicas import replica_spec


def gateway() -> str:
    metrics = GatewayMetrics(Knowledge(lambda: 0.0, 1.0))
    metrics.taken("inference")
    metrics.answered("inference", 200)
    metrics.first_byte("inference", 0.1)
    metrics.retried("refused")
    metrics.failed("refused")
    metrics.version_answered(make_adapter(1), 200)
    metrics.cold_load("loaded")
    metrics.held_back("full")
    return metrics.text().decode()


def agent() -> str:
    return AgentMetrics(Board(replica_spec(), "epoch", lambda: 0.0)).text().decode()


def control() -> str:
    board = Board(replica_spec(), "epoch", lambda: 0.0)
    status: ReplicaStatus = board.status
    parts: Any = SimpleNamespace(
        counts=Counts(),
        publisher=SimpleNamespace(version=1),
        gateways=Gateways(lambda: 0.0),
        agents=SimpleNamespace(facts={status.replica: status}),
    )
    registry = CollectorRegistry()
    states = {"instances": {"running": 1}, "attachments": {"ready": 1}, "jobs": {"queued": 1}}
    registry.register(_Page(cast(Any, parts), states))
    return generate_latest(registry).decode()


def families(page: str) -> set[str]:
    """Names as documents have them: counters without `_total`."""
    found = {name.removesuffix("_total") for name in re.findall(r"^# TYPE (\S+)", page, re.MULTILINE)}
    return {name for name in found if not name.endswith("_created")}


def series(page: str) -> dict[str, set[str]]:
    """Names of samples as queries have them, with their labels."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^([a-z_]+)(?:\{(.*)\})? ", page, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found
