"""The last snapshot on disk, to start from while control is away. It holds keys to engines: mode 0600."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

COMPACT_BYTES = 4 * 2**20
_FRAME = struct.Struct("<II")


class KeptSnapshot:
    """A file whose modification time says when control last confirmed it, and one with what came since.

    Both are frames of `length, crc32, data`. Blocking: call it in a thread.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "snapshot.msgpack"
        self._since = state_dir / "snapshot.deltas"
        self._end: int | None = None  # of the whole deltas

    def read(self) -> tuple[bytes, list[bytes], float] | None:
        """The snapshot, the deltas since, and when it was confirmed; None where there is none. Raises `OSError`, also
        where it is damaged.

        Deltas end where a crash tore one, and may be of a snapshot before this one.
        """
        try:
            with self._path.open("rb") as file:
                data, confirmed_at = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            self._end = 0
            return None
        deltas = list(_frames(self._since.read_bytes() if self._since.exists() else b""))
        self._end = sum(_FRAME.size + len(delta) for delta in deltas)
        whole = next(_frames(data), None)
        if whole is None or len(data) != _FRAME.size + len(whole):
            raise OSError(f"{self._path} is damaged")
        return whole, deltas, confirmed_at

    def append(self, delta: bytes, confirmed_at: float) -> bool:
        """Adds a delta; whether they have grown so large that a whole one should be written. Raises `OSError`."""
        if self._end is None:
            self.read()
        assert self._end is not None
        descriptor = os.open(self._since, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.truncate(self._end)  # nothing is found behind one that was torn
            file.seek(self._end)
            file.write(_frame(delta))
            file.flush()
            os.fsync(file.fileno())
            self._end = file.tell()
        os.utime(self._path, (confirmed_at, confirmed_at))
        return self._end > max(COMPACT_BYTES, self._path.stat().st_size)

    def write(self, data: bytes, confirmed_at: float) -> None:
        """Atomic: a crash leaves the old one or the new one. Deltas before it go. Raises `OSError`."""
        partial = self._path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_frame(data))
            file.flush()
            os.fsync(file.fileno())
        os.utime(partial, (confirmed_at, confirmed_at))
        partial.replace(self._path)
        self._end = 0
        self._since.unlink(missing_ok=True)

    def confirm(self, at: float) -> None:
        """Raises `OSError`."""
        os.utime(self._path, (at, at))


def _frame(data: bytes) -> bytes:
    return _FRAME.pack(len(data), zlib.crc32(data)) + data


def _frames(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + _FRAME.size <= len(data):
        size, crc = _FRAME.unpack_from(data, at)
        frame = data[at + _FRAME.size : at + _FRAME.size + size]
        if len(frame) < size or zlib.crc32(frame) != crc:
            return
        yield frame
        at += _FRAME.size + size


def gateway_id(state_dir: Path, new_id: Callable[[], str]) -> str:
    """This gateway's name to control, the same after a restart. Makes `state_dir` (mode 0700) where it is missing."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = state_dir / "gateway-id"
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text(new_id())
        partial.replace(path)
    return path.read_text().strip()
