"""The last snapshot on disk, to start from while control is away. It holds keys to engines: mode 0600."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


class KeptSnapshot:
    """A file whose modification time says when control last confirmed it. Blocking: call it in a thread."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "snapshot.msgpack"

    def read(self) -> tuple[bytes, float] | None:
        """The snapshot and when it was confirmed; None where there is none. Raises `OSError`."""
        try:
            with self._path.open("rb") as file:
                return file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None

    def write(self, data: bytes, confirmed_at: float) -> None:
        """Atomic: a crash leaves the old one or the new one. Raises `OSError`."""
        partial = self._path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.utime(partial, (confirmed_at, confirmed_at))
        partial.replace(self._path)

    def confirm(self, at: float) -> None:
        """Raises `OSError`."""
        os.utime(self._path, (at, at))


def gateway_id(state_dir: Path, new_id: Callable[[], str]) -> str:
    """This gateway's name to control, the same after a restart. Makes `state_dir` (mode 0700) where it is missing."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = state_dir / "gateway-id"
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text(new_id())
        partial.replace(path)
    return path.read_text().strip()
