"""The documents as tests see them: fenced blocks, the commands in them, their links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. ```` ```toml pillion.toml ````: its language, and the file a reader would put it in."""

    language: str
    file: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """What a reader types after `$ `, and the lines shown below it."""

    text: str
    shown: tuple[str, ...]
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, _, file = match["info"].strip().partition(" ")
        found.append(Block(language, file.strip(), match["text"], text.count("\n", 0, match.start()) + 1))
    return found


def commands(block: Block) -> list[Command]:
    """Of a `console` block. A line that ends with a backslash goes on in the next one."""
    found: list[Command] = []
    shown: list[str] = []
    text, line, open_ended = "", block.line, False
    for number, row in enumerate(block.text.splitlines(), block.line + 1):
        if open_ended:
            text += "\n" + row
        elif row.startswith("$ "):
            if text:
                found.append(Command(text, tuple(shown), line))
            text, shown, line = row[2:], [], number
        else:
            assert text, f"line {number}: a console block begins with a command"
            shown.append(row)
            continue
        open_ended = row.endswith("\\")
    return [*found, Command(text, tuple(shown), line)]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def matches(shown: tuple[str, ...], said: list[str]) -> bool:
    """Whether a command said what is shown. `…` stands for anything within a line, alone for any lines."""
    pattern = ""
    for line in shown:
        if line.strip() == "…":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += r"[^\n]*?".join(re.escape(part) for part in line.rstrip().split("…")) + r"\n"
    return re.fullmatch(pattern, "".join(f"{line.rstrip()}\n" for line in said)) is not None


def cells(page: Path, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head; code marks are taken off."""
    _, _, below = page.read_text("utf-8").partition(f"\n{heading}\n")
    assert below, f"{page.name} has no heading {heading!r}"
    rows = []
    for line in below.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip().replace("`", "") for cell in line[1:-1].split(" |")])
        elif rows:
            break
    return rows[2:]
