"""One real vLLM for all tests here, with a small random Llama and adapters of it.

Run with `--dist loadgroup` under xdist, so that one worker gets all of these tests and one engine is started.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from running_engine import BASE, SLOTS, Engine
from tests.real_models import engine_python, models, quiet_environment

import pillion.engines

__all__ = ["engine_python", "models"]

PLUGIN = Path(pillion.engines.__file__).parent / "plugin"
START_S = 300


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
            env=quiet_environment()
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
