"""Small files that must be whole or absent, and secrets nobody else may read."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pillion.core.errors import ConflictError


def write_private(path: Path, text: str) -> None:
    """Write `path` with mode 0600 so that it is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which goes with the process however it ends. Raises `ConflictError` naming its holder."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConflictError(
                f"Another 'pillion serve' (process {file.read().strip() or 'unknown'}) runs over {path.parent}. Stop it, "
                "or give this one a directory of its own with --data-dir."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def private_token(path: Path) -> str:
    """The token kept in `path`, made at first use. Two processes that start at once agree on one."""
    return private_once(path, lambda: secrets.token_urlsafe(32))


def private_once(path: Path, make: Callable[[], str]) -> str:
    """The text kept in `path` (mode 0600); what `make` gives, from now on, where there is none yet.

    Of processes that come at once one wins, and all get what it wrote.
    """
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        write_private(temporary, make())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return path.read_text().strip()
