"""The engine's log: bounded on disk, read from its end, followed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

MAX_BYTES = 16 * 1024 * 1024
_TAIL_BYTES = 1024 * 1024
_FOLLOW_S = 0.2


class NewLines:
    """What was written to a log since one last looked. Whole lines only."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = _size(path) if from_end else 0
        self._rest = b""

    def read(self) -> list[str]:
        size = _size(self._path)
        if size < self._offset:  # it was cut
            self._offset, self._rest = 0, b""
        if size == self._offset:
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(_TAIL_BYTES)
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines, of the last MiB at most."""
    size = _size(path)
    if size == 0 or lines <= 0:
        return []
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return text.splitlines()[-lines:]


async def follow(path: Path, lines: int) -> AsyncIterator[str]:
    """The last `lines` lines and then each new one, for ever."""
    new = NewLines(path, from_end=True)
    for line in tail(path, lines):
        yield line
    while True:
        for line in new.read():
            yield line
        await asyncio.sleep(_FOLLOW_S)


def bound(path: Path, most: int = MAX_BYTES) -> None:
    """Keeps a log that is too long as `<name>.1` and empties it in place: its writer has it open to append."""
    if _size(path) <= most:
        return
    old = path.with_name(path.name + ".1")
    with path.open("rb") as source, old.open("wb") as kept:
        source.seek(-most, os.SEEK_END)
        while chunk := source.read(1 << 20):
            kept.write(chunk)
    os.truncate(path, 0)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
