"""Where the server is and which key opens it: arguments, then the environment, then the key file."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pillion.sdk.errors import PillionConfigError

DEFAULT_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class Settings:
    """`local`: the server is on this machine's loopback, where no proxy stands in between."""

    base_url: str
    api_key: str | None = field(repr=False)
    local: bool


def settings(base_url: str | None, api_key: str | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Arguments win over `PILLION_URL` and `PILLION_API_KEY`; those win over the defaults.

    The default key is that of `<data dir>/admin-key` (`PILLION_DATA_DIR`, else `~/.pillion`). It is only ever
    used for a server on this machine: another one has no use for it and must not see it.
    Raises `PillionConfigError` for a URL that is not http or https.
    """
    url = (base_url or environ.get("PILLION_URL") or DEFAULT_URL).strip().rstrip("/").removesuffix("/v1")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PillionConfigError(f"{url!r} is not a server's URL: it should look like {DEFAULT_URL}.")
    local = _is_loopback(parts.hostname)
    key = api_key or environ.get("PILLION_API_KEY") or (_local_key(environ) if local else None)
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise PillionConfigError("The API key holds a space, a line break or another character no key has.")
    return Settings(url, key, local)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _local_key(environ: Mapping[str, str]) -> str | None:
    path = Path(environ.get("PILLION_DATA_DIR") or "~/.pillion").expanduser() / "admin-key"
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() or None
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        # Without a readable key file the server says what is missing (401).
        return None
