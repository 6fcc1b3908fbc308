"""Every command the documents show is run, in order, on a new site with the simulated engine; what they show must be so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import terminal
from tests.docs.pages import PAGES, ROOT, Command, blocks, commands, matches
from tests.docs.terminal import Terminal

PORT = "8080"
SETUP = "makes the environment that these tests run in"
REAL = "takes a real engine: tests/real_engine and the demo run it"
HUB = "takes a network"
# Commands that are shown and not run here, and why.
NOT_RUN = {
    "make setup": SETUP,
    'export PATH="$PWD/.venv/bin:$PATH"': SETUP,
    "make demo": REAL,
    "make test": "is what runs this",
    "MODEL=hf:Qwen/Qwen3-0.6B make demo": HUB,
    "pillion engines install": REAL,
    "pillion engines list": REAL,
    ".venv/bin/pillion engines install": REAL,
    ".venv/bin/pillion engines list": REAL,
    ".venv/bin/pillion serve": HUB,
    ".venv/bin/pillion instances launch qwen3-0.6b --lora": HUB,
    ".venv/bin/pillion adapters upload my-adapter ./my-peft-folder --base qwen3-0.6b": HUB,
    ".venv/bin/pillion adapters import another --base qwen3-0.6b --repo someone/their-adapter": HUB,
    ".venv/bin/pillion adapters attach my-adapter 1": HUB,
    '.venv/bin/pillion chat qwen3-0.6b:my-adapter "Hello?"': HUB,
}


def _console(page: Path) -> list[Command]:
    return [c for block in blocks(page) if block.language == "console" for c in commands(block)]


def _runs(page: Path) -> bool:
    return any(command.text not in NOT_RUN for command in _console(page))


@pytest.mark.parametrize("page", [page for page in PAGES if _runs(page)], ids=lambda page: page.stem)
def test_commands_do_what_is_shown(page: Path, tmp_path: Path) -> None:
    port = terminal.free_port()
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    shell = Terminal(tmp_path, terminal.environment(tmp_path, port))
    try:
        for block in blocks(page):
            if block.file:
                (tmp_path / block.file).write_text(block.text.replace(PORT, str(port)), "utf-8")
            if block.language == "console":
                for command in commands(block):
                    _run(shell, page, command, str(port))
        _data_is_where_it_is_said_to_be(tmp_path / ".pillion")
    finally:
        shell.close()


def _data_is_where_it_is_said_to_be(data_dir: Path) -> None:
    layout = next(b.text for b in blocks(ROOT / "docs/operations.md") if b.text.startswith("~/.pillion/"))
    told = set(re.findall(r"^  ([a-z.-]+)", layout, re.MULTILINE))
    found = {path.name.removesuffix("-shm").removesuffix("-wal") for path in data_dir.iterdir()}
    assert found <= told, f"the layout in operations.md lacks {found - told}"


def _run(shell: Terminal, page: Path, command: Command, port: str) -> None:
    if command.text in NOT_RUN:
        return
    where = f"{page.name}, line {command.line}: {command.text}"
    typed = command.text.replace(PORT, port)
    if re.match(r"pillion serve\b", typed):
        status, lines = 0, shell.serve(typed)
    else:
        status, lines = shell.run(typed)
    said = [line.replace(port, PORT) for line in lines if line.strip()]
    heard = "\n".join(said)
    assert status == 0, f"{where}\nended with {status}:\n{heard}"
    shown = tuple(line for line in command.shown if line.strip())
    assert matches(shown, said), f"{where}\nsaid:\n{heard}\nand not what is shown"


def test_what_is_not_run_is_shown_somewhere() -> None:
    shown = {command.text for page in PAGES for command in _console(page)}
    assert set(NOT_RUN) <= shown


@pytest.mark.parametrize(
    ("shown", "said", "same"),
    [
        (("a",), ["a"], True),
        (("a",), ["a", "b"], False),
        (("a…c",), ["abbc"], True),
        (("a…c",), ["ab", "c"], False),
        (("a", "…"), ["a", "b", "c"], True),
        (("…", "c"), ["a", "b", "c"], True),
        (("…", "c"), ["a", "b"], False),
        (("…",), [], True),
        ((), [], True),
        ((), ["a"], False),
    ],
)
def test_shown_text_is_compared_but_for_ellipses(shown: tuple[str, ...], said: list[str], same: bool) -> None:
    assert matches(shown, said) is same
