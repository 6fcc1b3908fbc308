"""Progress on stderr: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import io

import pytest

from pillion.cli import output, progress
from pillion.sdk.waiting import Progress


def test_elsewhere_only_changes_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.steps("launching") as told:
        for _ in range(3):
            told(Progress("loading", 0, 2))
        told(Progress("loading", 1, 2, "weights\x1b[31m"))
    assert capsys.readouterr().err.splitlines() == [
        "launching: loading (0 of 2)",
        "launching: loading (1 of 2): weights [31m",
    ]


def test_nobody_is_told_of_bytes_where_nobody_watches() -> None:
    with progress.transfer("uploading") as told:
        assert told is None


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with progress.steps("[job] 1") as told:
        told(Progress("downloading", 0.5, 1.0))
    with progress.transfer("uploading") as on_bytes:
        assert on_bytes is not None
        on_bytes(500_000, 1_000_000)
    assert "[job] 1: downloading 50%" in screen.getvalue()
    assert "500.0/1000.0 kB" in screen.getvalue() or "0.5/1.0 MB" in screen.getvalue()


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (5e14, "500.0 TB")],
)
def test_sizes(number: float, words: str) -> None:
    assert output.size(number) == words


def test_what_a_server_says_cannot_steer_the_terminal() -> None:
    assert output.plain("a\x1b]0;title\x07\nb\tc") == "a ]0;title b c"
    assert output.printable("a\x1b[2Jb\nc\td") == "a[2Jb\nc\td"
