"""Adapters on a node: copied from the store by digest, checked, and kept (for agents).

<cache_dir>/<digest>/adapter_model.safetensors, adapter_config.json
<cache_dir>/<digest>.checked     what the two files looked like when their digest was last computed; touched at each use
<cache_dir>/<digest>.lock        held by who is fetching
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pillion.artifacts.files import chunks
from pillion.artifacts.store import CONFIG, WEIGHTS, ArtifactStore
from pillion.core.adapters.config import MAX_CONFIG
from pillion.core.adapters.digest import version_digest
from pillion.core.errors import ArtifactCorruptError

_BOOT = Path("/proc/sys/kernel/random/boot_id")


async def fetch(store_url: str, digest: str, cache_dir: Path) -> Path:
    """The directory of the adapter `digest` on this node, its bytes those of the digest.

    A cached copy is taken as good while its files are untouched since they were hashed, within one boot of
    the machine; else it is hashed again and fetched anew if it is damaged. Concurrent fetches, of other
    processes too, share one copy. Raises `ArtifactMissingError`, `ArtifactCorruptError` (the store's own
    bytes are damaged), or `OSError`.
    """
    return await asyncio.to_thread(_fetch, ArtifactStore(store_url), digest, cache_dir)


def mark_of(copy: Path) -> Path:
    """The file beside a copy that says that it was checked, and by its time when it was last used."""
    return copy.with_name(f"{copy.name}.checked")


def _fetch(store: ArtifactStore, digest: str, cache_dir: Path) -> Path:
    source = store.path(digest)  # checks the digest's form before it becomes part of a path
    target = cache_dir / digest
    mark = mark_of(target)
    if _is_used(target, mark):
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with locked(cache_dir / f"{digest}.lock"):
        if _is_used(target, mark):
            return target
        if not _is_intact(target, digest):
            source = store.find(digest)
            _copy(source, target, digest)
        _write_mark(mark, _look(target))
    return target


def _copy(source: Path, target: Path, digest: str) -> None:
    """Copy, never link: what is written into the cache must not reach the store."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{digest[:12]}-", dir=target.parent))
    try:
        for name in (WEIGHTS, CONFIG):
            shutil.copyfile(source / name, fresh / name)
            (fresh / name).chmod(0o444)
        if not _is_intact(fresh, digest):
            raise ArtifactCorruptError(
                f"The stored bytes of adapter {digest} are damaged; upload or import the adapter again."
            )
        shutil.rmtree(target, ignore_errors=True)
        fresh.chmod(0o755)
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _is_intact(directory: Path, digest: str) -> bool:
    """Whether the files there have this digest. Reads them whole."""
    try:
        config = directory / CONFIG
        if config.stat().st_size > MAX_CONFIG:
            return False
        weights = hashlib.sha256()
        for block in chunks(directory / WEIGHTS):
            weights.update(block)
        return version_digest(weights.hexdigest(), config.read_bytes()) == digest
    except FileNotFoundError:
        return False


def _is_used(directory: Path, mark: Path) -> bool:
    """Whether it is there and checked; then it counts as used now, and is not cleared away for a while."""
    with suppress(FileNotFoundError, ValueError):
        if json.loads(mark.read_bytes()) == _look(directory):
            os.utime(mark)
            return True
    return False


def _look(directory: Path) -> list[object]:
    """What shows that files were touched. The boot is part of it: a power cut can lose bytes but keep the
    times."""
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    looks: list[object] = [boot]
    for name in (WEIGHTS, CONFIG):
        found = os.stat(directory / name)
        looks.append([found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino])
    return looks


def _write_mark(mark: Path, look: list[object]) -> None:
    fresh = mark.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(look))
    fresh.replace(mark)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[Path | None]:
    """Holds the lock at `path`, and gives it; None where `wait` is false and another has it. Who holds it may remove it."""
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            if _is_at(path, file.fileno()):
                yield path
                return


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at `path`: its holder before may have removed it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False
