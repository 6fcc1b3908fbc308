"""A node's copies of adapters kept within bounds: what was used least recently goes first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pillion.artifacts.fetch import locked, mark_of
from pillion.core.adapters.digest import is_digest

RECENT_S = 60.0  # what was fetched so lately is perhaps about to be read
LEFTOVER_S = 3600.0  # longer than a copy takes


@dataclass(frozen=True)
class _Copy:
    """`used` in seconds since the epoch."""

    digest: str
    size: int
    used: float


def trim(cache_dir: Path, most_bytes: int, keep: Collection[str], now: float) -> list[str]:
    """Removes copies until the rest has `most_bytes` at most; the digests that went.

    Those in `keep` and those used within `RECENT_S` stay, even if that is more. Safe beside fetches of other processes.
    """
    copies = sorted(_copies(cache_dir), key=lambda copy: copy.used)
    left, gone = sum(copy.size for copy in copies), list[str]()
    for copy in copies:
        if left <= most_bytes:
            break
        if copy.digest not in keep and copy.used <= now - RECENT_S and _remove(cache_dir, copy):
            left -= copy.size
            gone.append(copy.digest)
    _sweep(cache_dir, now - LEFTOVER_S)
    return gone


def _copies(cache_dir: Path) -> Iterator[_Copy]:
    for path in cache_dir.iterdir() if cache_dir.is_dir() else ():
        if not is_digest(path.name):
            continue
        with suppress(FileNotFoundError):
            mark = mark_of(path)
            used = (mark if mark.exists() else path).stat().st_mtime
            yield _Copy(path.name, sum(file.stat().st_size for file in path.iterdir()), used)


def _remove(cache_dir: Path, copy: _Copy) -> bool:
    """False where somebody fetches it this very moment."""
    target = cache_dir / copy.digest
    with locked(cache_dir / f"{copy.digest}.lock", wait=False) as lock:
        if lock is None:
            return False
        mark, aside = mark_of(target), cache_dir / f".gone-{copy.digest}.checked"
        with suppress(FileNotFoundError):
            mark.rename(aside)  # from here on nobody takes it as good
            if aside.stat().st_mtime != copy.used:
                aside.rename(mark)
                return False
        grave = cache_dir / f".gone-{copy.digest}"
        shutil.rmtree(grave, ignore_errors=True)
        target.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)
        aside.unlink(missing_ok=True)
        lock.unlink()
    return True


def _sweep(cache_dir: Path, before: float) -> None:
    """What processes that died left half made or half removed."""
    for path in cache_dir.glob(".*"):
        with suppress(FileNotFoundError):
            if os.lstat(path).st_mtime >= before:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
