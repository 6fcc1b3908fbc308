from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_api import KEY, FakeApi, Run
from typer.testing import CliRunner

from pillion.cli import output
from pillion.cli.app import app


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as fake:
        yield fake


@pytest.fixture
def run(api: FakeApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The command line against the fake server: `run("adapters", "list")`."""
    monkeypatch.setenv("PILLION_URL", api.url)
    monkeypatch.setenv("PILLION_API_KEY", KEY)
    monkeypatch.setenv("PILLION_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("TZ", "UTC")
    return lambda *args, **more: CliRunner().invoke(app, [str(arg) for arg in args], **more)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if standard output were a wide terminal."""
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "250")
