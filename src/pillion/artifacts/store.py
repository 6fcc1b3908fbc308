"""The artifact store: adapter versions by digest, on local files.

    <root>/adapters/<digest[:2]>/<digest>/adapter_model.safetensors, adapter_config.json
    <root>/incoming/in-*        what is being received; nothing there is visible

Bytes are written once and never changed. A version is there whole or not at all.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from pillion.artifacts.files import CHUNK, HashingWriter, Written, room, sync_directory, too_large
from pillion.core.adapters.digest import is_digest
from pillion.core.errors import ArtifactMissingError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
UPLOAD = "upload"

T = TypeVar("T")


class ArtifactStore:
    """Adapters under one directory, given as `file:///dir`. Safe for several processes at once."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.root = root_of(url)
        self._incoming = self.root / "incoming"

    def intake(self, limit: int) -> Intake:
        """Room to receive one adapter of at most `limit` bytes: `async with store.intake(…) as intake`."""
        return Intake(self, limit)

    def path(self, digest: str) -> Path:
        """Where a version lies, whether it is there or not. `ValueError` for what is no digest."""
        if not is_digest(digest):
            raise ValueError(f"{digest[:80]!r} is not a digest")
        return self.root / "adapters" / digest[:2] / digest

    def find(self, digest: str) -> Path:
        """The directory of a version that is there. Raises `ArtifactMissingError`."""
        path = self.path(digest)
        if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
            raise ArtifactMissingError(
                f"The artifact store has no adapter {digest}; upload or import it again."
            )
        return path

    async def delete(self, digest: str) -> None:
        """Remove a version at one stroke. One that is not there is fine."""
        await asyncio.to_thread(self._delete, digest)

    async def untouched(self, since: float) -> list[str]:
        """The versions that nobody has put there since then (seconds since the epoch), also not once more."""
        return await asyncio.to_thread(self._untouched, since)

    async def discard(self, digest: str, since: float) -> bool:
        """Remove a version unless somebody has put it there, or once more, since then. Whether it was removed."""
        return await asyncio.to_thread(self._discard, digest, since)

    async def sweep(self, older_than: float) -> int:
        """Remove what crashed receptions left behind, untouched since `older_than` (seconds since the epoch).

        Returns how many there were.
        """
        return await asyncio.to_thread(self._sweep, older_than)

    def open_incoming(self) -> Path:
        self._incoming.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="in-", dir=self._incoming))

    def place(self, directory: Path, digest: str) -> Path:
        """Move the two files of `directory` to where `digest` belongs. The same bytes there already are
        replaced one file at a time, each at one stroke, which also heals them.
        """
        target = self.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        sync_directory(directory)
        try:
            directory.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            for name in (WEIGHTS, CONFIG):
                (directory / name).replace(target / name)
            directory.rmdir()
            sync_directory(target)
        for parent in (target.parent, target.parent.parent):
            sync_directory(parent)
        return target

    def _delete(self, digest: str) -> None:
        shutil.rmtree(self._take_away(digest))

    def _take_away(self, digest: str) -> Path:
        grave = self.open_incoming()
        with suppress(FileNotFoundError):
            self.path(digest).rename(grave / digest)
        return grave

    def _untouched(self, since: float) -> list[str]:
        names = (path.name for path in self.root.glob("adapters/*/*"))
        return sorted(name for name in names if is_digest(name) and self._is_untouched(name, since))

    def _is_untouched(self, digest: str, since: float) -> bool:
        try:
            return self.path(digest).stat().st_mtime < since
        except FileNotFoundError:
            return False

    def _discard(self, digest: str, since: float) -> bool:
        if not self._is_untouched(digest, since):
            return False
        grave = self._take_away(digest)
        gone = grave / digest
        came_again = gone.is_dir() and gone.stat().st_mtime >= since  # since it was looked at
        if came_again:
            self.place(gone, digest)
        shutil.rmtree(grave)
        return not came_again

    def _sweep(self, older_than: float) -> int:
        stale = [path for path in self._incoming.glob("in-*") if _touched(path) < older_than]
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)  # another control may sweep the same one
        return len(stale)


class Intake:
    """One adapter being received. Leaving the context removes all that was not committed, also after a
    cancel.

    `write` chunks as they come; then `finish`; then `pillion.artifacts.receive` verifies and commits.
    """

    def __init__(self, store: ArtifactStore, limit: int) -> None:
        self._store = store
        self._limit = limit
        self._buffer = bytearray()
        self._running: asyncio.Future[Any] | None = None
        self._written: Written | None = None
        self._writer: HashingWriter
        self.directory: Path

    @property
    def upload(self) -> Path:
        """The file as it came, weights or archive."""
        return self.directory / UPLOAD

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self._writer.size + len(self._buffer)

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes. Raises `AdapterTooLargeError` past the limit. One call at a time."""
        self._buffer += chunk
        if self.size > self._limit:
            raise too_large(self._limit)
        if len(self._buffer) >= CHUNK:
            await self._flush()

    async def finish(self) -> Written:
        """All is received: flush it to the disk."""
        if self._written is None:
            await self._flush()
            self._written = await self.run(self._writer.finish)
        return self._written

    async def commit(self, directory: Path, digest: str) -> Path:
        """Make the files of `directory` (under this intake) the version `digest`."""
        return await self.run(lambda: self._store.place(directory, digest))

    async def run(self, work: Callable[[], T]) -> T:
        """Run file work in a thread. A cancelled caller goes at once; leaving the context waits for the
        thread."""
        running = asyncio.ensure_future(asyncio.to_thread(work))
        self._running = running
        with room():
            return await asyncio.shield(running)

    async def __aenter__(self) -> Intake:
        with room():
            self.directory = await asyncio.to_thread(self._store.open_incoming)
            self._writer = HashingWriter(self.upload, self._limit)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)
        with suppress(OSError):  # what the disk had no room for is not wanted any more
            self._writer.close()
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    async def _flush(self) -> None:
        data = bytes(self._buffer)
        self._buffer.clear()
        if data:
            await self.run(lambda: self._writer.write(data))


def root_of(url: str) -> Path:
    """The directory of a `file://` URL. Raises `ValueError` for any other."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ValueError(f"artifact store {url!r} is not supported: use file:///an/absolute/directory")
    return Path(unquote(parts.path))


def _touched(path: Path) -> float:
    """When a reception last wrote anything."""
    times = [0.0]
    for entry in (path, *path.glob("**/*")):
        with suppress(FileNotFoundError):
            times.append(os.stat(entry).st_mtime)
    return max(times)
