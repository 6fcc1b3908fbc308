"""Help: every command has it, and it costs no import of what only a command that runs needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from pillion.cli.app import app


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The client's. Where another test has imported the server's, they are in the same app."""
    if getattr(command.callback, "__module__", "").startswith("pillion.main"):
        return
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*path, name))


@pytest.mark.parametrize("path", [path for path, _ in _commands(get_command(app))], ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_every_command_and_option_says_what_it_does_and_takes_json() -> None:
    for path, command in _commands(get_command(app)):
        assert command.help, path
        names = [name for parameter in command.params for name in parameter.opts]
        assert getattr(command, "commands", None) or "--json" in names, path
        assert all(parameter.help for parameter in command.params), path


@pytest.mark.parametrize(
    "args", [["--help"], ["adapters", "--help"], ["adapters", "deploy", "--help"], ["--nonsense"]]
)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    program = (
        "import sys\n"
        "from pillion.cli.app import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print('|'.join(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *args],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ),
        check=True,
    )
    heavy = {"rich", "httpx", "httpcore", "msgspec", "asyncio", "ssl", "pydantic", "anyio", "email", "click"}
    assert heavy.isdisjoint(done.stderr.splitlines()[-1].split("|"))
