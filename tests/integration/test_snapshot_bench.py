"""bench/snapshot.py runs, and writes what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench" / "snapshot.py"


@pytest.mark.timeout(600)
def test_changes_loading_and_routing_are_measured(tmp_path: Path) -> None:
    results = tmp_path / "snapshot.json"
    options = [
        "--adapters",
        "300",
        "--accounts",
        "30",
        "--changes",
        "4",
        "--requests",
        "500",
        "--results",
        results,
    ]
    done = subprocess.run([sys.executable, BENCH, *map(str, options)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results.read_text())
    assert found["changes"].keys() == {"made", "revoked"}
    assert found["changes"]["revoked"]["p50"] > 0
    assert found["load"]["bytes"] > 10_000
    assert found["routing"]["replicas"] == 1000
    assert "| a key is revoked" in done.stdout
