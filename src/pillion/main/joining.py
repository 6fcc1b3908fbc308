"""What a gateway shows control: of the data directory that they share, or its own, which a one-time token bought."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from pathlib import Path

import aiohttp
import structlog

from pillion.core.errors import InvalidRequestError
from pillion.main.config import Config
from pillion.main.files import private_once, private_token, write_private

JOIN_TOKEN = "PILLION_JOIN_TOKEN"  # noqa: S105 (the name of the variable)
PAUSE_S = 1.0
CALL_S = 10.0

log = structlog.get_logger(__name__)


def local_credential(config: Config) -> str:
    """Of all that share control's data directory."""
    return private_token(config.data_dir / "internal-token")


async def credential(config: Config, internal_url: str) -> str:
    """Waits for control where it has still to join. Raises `InvalidRequestError` where the token is not good.

    The credential is kept before it is bought: a gateway that dies, or hears no answer, asks again with the same one.
    """
    token, home = os.environ.get(JOIN_TOKEN, ""), config.data_dir / "gateway"
    own, joined = home / "credential", home / "joined"
    if not token and not own.exists():
        return local_credential(config)
    text = private_once(own, lambda: f"pgw_{secrets.token_urlsafe(32)}")
    mark = hashlib.sha256(f"{internal_url} {token}".encode()).hexdigest()
    if token and _kept(joined) != mark:
        await _join(internal_url, token, text)
        write_private(joined, mark)
    return text


async def _join(internal_url: str, token: str, credential: str) -> None:
    url, fields = f"{internal_url.rstrip('/')}/internal/v1/join", {"authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CALL_S)) as session:
        while True:
            try:
                async with session.post(url, data=credential, headers=fields) as answer:
                    if answer.status == 204:
                        return
                    if answer.status == 401:
                        raise InvalidRequestError(
                            f"Control does not take the token in {JOIN_TOKEN}: it is unknown, was used or revoked, or is "
                            "over. Make another with 'pillion gateways add'."
                        )
                    why = f"control answered {answer.status}"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why = repr(error)
            log.warning("joining_waits", error=why)
            await asyncio.sleep(PAUSE_S)


def _kept(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
