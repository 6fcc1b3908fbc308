"""`make demo` on the real engine: what it says is what happened."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo" / "demo.py"


@pytest.fixture
def environment(tmp_path: Path, engine_python: Path) -> Iterator[dict[str, str]]:
    """A state directory of its own, so that a demo somebody left running is not touched."""
    own = {**os.environ, "PILLION_DEMO_DIR": str(tmp_path / "demo"), "PILLION_DEMO_PORT": "0"}
    yield own
    subprocess.run([sys.executable, DEMO, "--stop"], env=own, check=True, timeout=120)


@pytest.mark.timeout(900)
def test_swaps_under_load_lose_and_mix_nothing_and_a_killed_engine_comes_back(
    environment: dict[str, str],
) -> None:
    done = subprocess.run(
        [sys.executable, DEMO], env=environment, capture_output=True, text=True, timeout=840, check=False
    )
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    served = re.search(r"(\d+) requests ran: 0 failed, 0 with wrong weights", said)
    assert served is not None, said
    assert int(served.group(1)) > 50
    assert "404 adapter_not_deployed, never the base" in said
    assert "back with its adapters after" in said
