"""The engine is two processes, one forked from the other, and neither outlives the other."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from conftest import BASE, Engine, launched


def test_a_killed_server_leaves_nothing(engine_python: Path, models: Path, tmp_path: Path) -> None:
    with launched(engine_python, models, tmp_path) as (engine, process):
        (core,) = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert psutil.wait_procs([core], timeout=30)[1] == []
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{engine.url}/health")


def test_a_killed_core_ends_the_server_and_no_excuse_is_passed_on(
    engine_python: Path, models: Path, tmp_path: Path
) -> None:
    with launched(engine_python, models, tmp_path) as (engine, process), ThreadPoolExecutor() as pool:
        (core,) = psutil.Process(process.pid).children(recursive=True)
        assert requests(engine) == 0  # who is asked about itself asks the core, once
        core.suspend()  # so that none has begun to be answered
        asked = [pool.submit(ask, engine, stream) for stream in (False, True)]
        while requests(engine) < len(asked):
            assert process.poll() is None
        core.kill()
        for answer in asked:
            assert answer.result(60) in ((503, "during"), None)
        assert process.wait(30) is not None


def ask(engine: Engine, stream: bool) -> tuple[int, str | None] | None:
    """Status, and how it says that the engine is dead; None where the connection ended without an answer."""
    body = {"model": BASE, "prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": stream}
    headers = {"authorization": f"Bearer {engine.infer_key}"}
    try:
        answer = httpx.post(f"{engine.url}/v1/completions", json=body, headers=headers, timeout=60)
    except httpx.TransportError:
        return None
    return answer.status_code, answer.headers.get("x-pillion-dead")


def requests(engine: Engine) -> int:
    """In flight with the base."""
    headers = {"authorization": f"Bearer {engine.agent_key}"}
    state = httpx.get(f"{engine.url}/pillion/v1/state", headers=headers, timeout=60).json()
    return int(state["base"]["inflight"])
