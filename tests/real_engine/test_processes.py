"""The engine is two processes, one forked from the other, and neither outlives the other."""

from pathlib import Path

import httpx
import psutil
import pytest

from conftest import launched


def test_a_killed_server_leaves_nothing(engine_python: Path, models: Path, tmp_path: Path) -> None:
    with launched(engine_python, models, tmp_path) as (engine, process):
        (core,) = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert psutil.wait_procs([core], timeout=30)[1] == []
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{engine.url}/health")


def test_a_killed_core_ends_the_server(engine_python: Path, models: Path, tmp_path: Path) -> None:
    with launched(engine_python, models, tmp_path) as (_, process):
        (core,) = psutil.Process(process.pid).children(recursive=True)
        core.kill()
        assert process.wait(30) is not None
