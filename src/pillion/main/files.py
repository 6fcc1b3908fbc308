"""Small files that must be whole or absent, and secrets nobody else may read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path


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
