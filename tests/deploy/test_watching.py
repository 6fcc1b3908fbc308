"""The dashboard and the alerts ask for metrics, labels and values that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from pillion.core.replica import Stage
from pillion.store.rows import AttachmentState
from tests.deploy import metric_pages

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/pillion.json").read_text("utf-8"))
ALERTS = yaml.safe_load((DEPLOY / "alerts/pillion.yaml").read_text("utf-8"))
WORDS = frozenset(
    [
        "sum",
        "max",
        "min",
        "by",
        "rate",
        "increase",
        "absent",
        "topk",
        "histogram_quantile",
        "le",
        "or",
        "and",
        "on",
    ]
)
VALUES = {
    "stage": set(get_args(Stage)),
    "kind": {"inference", "control", "models", "own", "container", "malformed"},
}


def panels() -> Iterator[dict[str, Any]]:
    return (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def rules() -> Iterator[dict[str, Any]]:
    return (rule for group in ALERTS["groups"] for rule in group["rules"])


EXPRESSIONS = [
    *(target["expr"] for panel in panels() for target in panel["targets"]),
    *(rule["expr"] for rule in rules()),
]


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    pages = (metric_pages.gateway(), metric_pages.control(), metric_pages.agent())
    return {name: labels for page in pages for name, labels in metric_pages.series(page).items()}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_asked_for_is_exported(expression: str, exported: dict[str, set[str]]) -> None:
    asked = re.findall(r"(pillion_[a-z_]+)(?:\{([^}]*)\})?", expression)
    assert asked
    labels: set[str] = set()
    for name, chosen in asked:
        assert name in exported, f"no part exports {name}"
        labels |= exported[name]
        for label, values in re.findall(r'(\w+)\s*=~?\s*"([^"]*)"', chosen):
            assert label in exported[name], f"{name} has no label {label}"
            if label in VALUES:
                assert set(values.split("|")) <= VALUES[label]
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert {word.strip() for word in grouped.split(",")} <= labels


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_are_whole(expression: str) -> None:
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|by \([^)]*\)|pillion_[a-z_]+', " ", expression)
    assert set(re.findall(r"[a-z_]{2,}", bare)) <= WORDS, bare


def test_every_metric_is_watched_somewhere(exported: dict[str, set[str]]) -> None:
    text = " ".join(EXPRESSIONS)
    seen = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in re.findall(r"pillion_[a-z_]+", text)}
    pages = (metric_pages.gateway(), metric_pages.control(), metric_pages.agent())
    unwatched = {name for page in pages for name in metric_pages.families(page)} - seen
    assert unwatched == {
        "pillion_gateway_compiled",
        "pillion_gateway_connections",
        "pillion_gateway_snapshot_version",
        "pillion_control_snapshot_version",
        "pillion_agent_grant_version",
        "pillion_agent_ready",
        "pillion_agent_slots",
        "pillion_agent_slots_used",
        "pillion_agent_stage",
    }


def test_the_dashboard_is_laid_out() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in panels()}) == len([*panels()])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_alerts_say_what_is_wrong() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert "failed" in get_args(AttachmentState)
