"""bench/placement.py runs, and writes what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench" / "placement.py"


@pytest.mark.timeout(600)
def test_placement_is_measured_through_the_whole(tmp_path: Path) -> None:
    results = tmp_path / "placement.json"
    options = ["--adapters", "150", "--requests", "600", "--rate", "200", "--results", str(results)]
    done = subprocess.run([sys.executable, BENCH, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    policies = json.loads(results.read_text())["policies"]
    assert policies.keys() == {"pillion", "round-robin-lru", "hashing-lru"}
    for found in policies.values():
        assert 0 < found["hit_static"] < 1
        assert 0 < found["hit_drift"] < 1
        assert found["max_over_mean"] >= 1
    assert policies["pillion"]["failed"] == 0
    assert "| pillion" in done.stdout
