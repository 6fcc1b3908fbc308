"""Bytes that nobody needs any more: of adapters that were deleted, of registrations and receptions that broke off."""

from __future__ import annotations

import asyncio

import structlog

from pillion.control.context import Control
from pillion.core.errors import UnavailableError

log = structlog.get_logger(__name__)

EVERY_S = 3600.0
GRACE_S = 3600.0  # much longer than from bytes in the store to their row in the database
RECEIVING_S = 86400.0


async def run(control: Control) -> None:
    """Clear now and then, until cancelled."""
    while True:
        try:
            await clear(control)
        except (OSError, UnavailableError) as error:
            log.warning("leftovers_not_cleared", error=str(error))
        await asyncio.sleep(EVERY_S)


async def clear(control: Control) -> list[str]:
    """Remove what no version of any account has, once it is old enough; the digests that went."""
    now = control.clock()
    await control.artifacts.sweep(now - RECEIVING_S)
    old = await control.artifacts.untouched(now - GRACE_S)
    async with control.db.read() as tx:
        needed = await tx.everyone.digests()
    # The same bytes may have come again meanwhile: then they are young, and their row is perhaps on its way.
    unneeded = [digest for digest in old if digest not in needed]
    gone = [digest for digest in unneeded if await control.artifacts.discard(digest, now - GRACE_S)]
    if gone:
        log.info("artifacts_cleared", digests=gone)
    return gone
