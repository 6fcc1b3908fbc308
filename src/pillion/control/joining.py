"""How gateways come to know control: a one-time token of the operator's buys a credential of the gateway's own (SPEC §9).

The gateway makes its credential itself and keeps it before it joins, so that an answer that is lost loses nothing.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

import structlog

from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import Deleted, Page
from pillion.core import keys
from pillion.core.errors import NotFoundError, UnavailableError
from pillion.core.names import new_id
from pillion.store.rows import JoinedGateway

VALID_S = 86400.0
PREFIX = "pgj_"
LENGTH = 40

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class GatewayView:
    """`token` is there only in the answer that made it; it is good once, until `expires_at`."""

    id: str
    name: str
    created_at: float
    expires_at: float
    joined_at: float | None = None
    revoked_at: float | None = None
    token: str | None = None


async def listing(control: Control) -> Page[GatewayView]:
    """Those that joined, those that may, and those that were revoked."""
    async with control.db.read() as tx:
        return Page([_view(row) for row in await tx.gateways.list()])


async def invite(control: Control, who: Principal, name: str) -> GatewayView:
    token, now = PREFIX + "".join(control.choice(keys.ALPHABET) for _ in range(LENGTH)), control.clock()
    async with control.db.transaction() as tx:
        row = await tx.gateways.invite(
            new_id("gwy", control.choice),
            name=name,
            token=keys.digest(control.pepper, token),
            by=who.key,
            now=now,
            expires_at=now + VALID_S,
        )
    return _view(row, token)


async def revoke(control: Control, who: Principal, id: str) -> Deleted:
    """Nothing is told to it any more, and nothing taken from it. What it knows it serves for as long as it may."""
    async with control.db.transaction() as tx:
        if not await tx.gateways.revoke(id, control.clock()):
            raise NotFoundError(f"there is no gateway {id[:80]!r}.")
    return Deleted(id)


class Door:
    """Who may use the internal API: who shares control's data directory and with it `local`, and gateways that joined."""

    def __init__(self, control: Control, local: str) -> None:
        self._control = control
        self._local = local
        self._known: set[str] = set()

    async def admits(self, credential: str) -> bool:
        """While the database is away, those that it said yes to before."""
        if hmac.compare_digest(credential.encode(), self._local.encode()):
            return True
        digest = keys.digest(self._control.pepper, credential)
        try:
            async with self._control.db.read() as tx:
                joined = await tx.gateways.joined(digest)
        except UnavailableError:
            return digest in self._known
        if joined:
            self._known.add(digest)
        else:
            self._known.discard(digest)
        return joined

    async def join(self, token: str, credential: str) -> bool:
        """Raises `UnavailableError`."""
        pepper = self._control.pepper
        async with self._control.db.transaction() as tx:
            row = await tx.gateways.join(
                keys.digest(pepper, token), keys.digest(pepper, credential), self._control.clock()
            )
        if row is not None:
            log.info("gateway_joined", gateway=row.id, name=row.name)
        return row is not None


def _view(row: JoinedGateway, token: str | None = None) -> GatewayView:
    return GatewayView(row.id, row.name, row.created_at, row.expires_at, row.joined_at, row.revoked_at, token)
