"""bench/fairness.py runs, and writes what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench" / "fairness.py"
FLOODS = {"none", "requests", "uploads", "cold adapters", "all"}


@pytest.mark.timeout(600)
def test_floods_are_measured(tmp_path: Path) -> None:
    results = tmp_path / "fairness.json"
    options = ["--seconds", "1", "--warm-up", "1", "--only", "with", "--results", str(results)]
    done = subprocess.run([sys.executable, BENCH, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results.read_text())["with"]
    assert found.keys() == FLOODS
    assert all(seen["requests"] > 0 and seen["p99_ms"] > 0 for seen in found.values())
    assert not any(seen["failed"] for seen in found.values())
    assert found["requests"]["greedy"].get("requests 429", 0) > 0, "who floods is held back"
    assert "| all |" in done.stdout
