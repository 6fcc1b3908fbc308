"""bench/engine.py runs, and writes what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench" / "engine.py"


@pytest.mark.timeout(600)
def test_stock_and_ours_side_by_side(engine_python: Path, tmp_path: Path) -> None:
    results = tmp_path / "engine.json"
    options = ["--only", "narrow", "--rounds", "1", "--tokens", "2", "--results", str(results)]
    done = subprocess.run([sys.executable, BENCH, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rates = json.loads(results.read_text())["narrow_tokens_per_s"]
    assert list(rates) == ["stock", "pillion"]
    assert all(list(of) == ["base", "1", "2", "4", "8"] for of in rates.values())
    assert all(rate > 0 for of in rates.values() for rate in of.values())
    assert "| pillion |" in done.stdout
