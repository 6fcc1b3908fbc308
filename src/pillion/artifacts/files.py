"""Files written so that a crash leaves either all of them or nothing."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pillion.core.errors import AdapterTooLargeError, StorageFullError

CHUNK = 2**20


@dataclass(frozen=True)
class Written:
    """A file that is on disk: its size in bytes and its SHA-256 in hex."""

    size: int
    sha256: str


class HashingWriter:
    """Writes a new file and hashes it on the way. More than `limit` bytes raise `AdapterTooLargeError`."""

    def __init__(self, path: Path, limit: int) -> None:
        self._file: BinaryIO = path.open("xb")
        self._hash = hashlib.sha256()
        self._limit = limit
        self.size = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._limit:
            raise too_large(self._limit)
        self._hash.update(data)
        self._file.write(data)

    def finish(self) -> Written:
        """Flush to the disk itself and close."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return Written(self.size, self._hash.hexdigest())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> HashingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def too_large(limit: int) -> AdapterTooLargeError:
    return AdapterTooLargeError(
        f"The adapter is larger than {limit / 1e6:g} MB, the most that is accepted.", param="file"
    )


@contextmanager
def room() -> Iterator[None]:
    """Raises `StorageFullError` where there is none for what is written inside."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError("the artifact store") from error
        raise


def chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            yield block


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut, where the platform can."""
    with suppress(PermissionError):  # some network filesystems refuse to open directories
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
