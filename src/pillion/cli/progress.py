"""Progress on stderr: a bar on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pillion.cli.output import note, plain

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from pillion.sdk.files import OnBytes
    from pillion.sdk.waiting import OnProgress, Progress


def on_terminal() -> bool:
    return sys.stderr.isatty()


@contextmanager
def steps(label: str) -> Iterator[OnProgress]:
    """Hears the stages of something that takes long."""
    if not on_terminal():
        yield _lines(label)
        return
    with _bars() as bars:
        task = bars.add_task(plain(label), total=None)

        def told(progress: Progress) -> None:
            bars.update(
                task,
                description=f"{plain(label)}: {_words(progress)}",
                completed=progress.done or 0,
                total=progress.total or None,
            )

        yield told


@contextmanager
def transfer(label: str) -> Iterator[OnBytes | None]:
    """Hears how many bytes have gone, of how many; silent where nobody watches."""
    if not on_terminal():
        yield None
        return
    with _bars(of_bytes=True) as bars:
        task = bars.add_task(plain(label), total=None)

        def told(done: int, total: int | None) -> None:
            bars.update(task, completed=done, total=total)

        yield told


def _lines(label: str) -> OnProgress:
    last = ""

    def told(progress: Progress) -> None:
        nonlocal last
        words = _words(progress)
        if words != last:
            note(f"{label}: {words}")
        last = words

    return told


def _words(progress: Progress) -> str:
    """`loading (1 of 2): reading weights`, or `downloading 40 %` where the whole is 1."""
    words = plain(progress.stage)
    if progress.total == 1.0 and progress.done is not None and isinstance(progress.total, float):
        words += f" {progress.done:.0%}"
    elif progress.total:
        words += f" ({progress.done or 0:g} of {progress.total:g})"
    return words + (f": {plain(progress.detail)}" if progress.detail else "")


def _bars(*, of_bytes: bool = False) -> Bars:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    last: list[Callable[[], ProgressColumn]] = (
        [DownloadColumn, TransferSpeedColumn, TimeRemainingColumn] if of_bytes else [TimeElapsedColumn]
    )
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        *(column() for column in last),
        console=Console(stderr=True),
        transient=True,
    )
