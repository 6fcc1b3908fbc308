"""What nobody needs any more: bytes of adapters that were deleted, of registrations and receptions that broke off; old
events, audit rows, logs of jobs and usage events.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from pillion.control.context import Control
from pillion.core.errors import UnavailableError

log = structlog.get_logger(__name__)

EVERY_S = 3600.0
GRACE_S = 3600.0  # much longer than from bytes in the store to their row in the database
RECEIVING_S = 3600.0  # without a byte: what is under way is cut off long before
BATCH = 1000  # rows at a time: others want to write too


@dataclass(frozen=True)
class Keep:
    """For how long (seconds); 0 is for ever."""

    events_s: float = 0.0
    audit_s: float = 0.0
    job_logs_s: float = 0.0
    usage_s: float = 0.0


async def run(control: Control, keep: Keep) -> None:
    """Clear now and then, until cancelled."""
    while True:
        try:
            await clear(control)
            await forget(control, keep)
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


async def forget(control: Control, keep: Keep) -> dict[str, int]:
    """Drop what is older than is to be kept; how many rows went."""
    kept = {
        "events": keep.events_s,
        "audit": keep.audit_s,
        "job_logs": keep.job_logs_s,
        "usage": keep.usage_s,
    }
    gone = {what: await _drop(control, what, seconds) for what, seconds in kept.items() if seconds}
    if any(gone.values()):
        log.info("old_rows_dropped", rows=gone)
    async with control.db.transaction() as tx:
        await tx.changes.forget(control.clock())
    return gone


async def _drop(control: Control, what: str, seconds: float) -> int:
    """A few at a time, each in a transaction of its own."""
    before, dropped = control.clock() - seconds, 0
    while True:
        async with control.db.transaction() as tx:
            drop = {
                "events": tx.retention.events,
                "audit": tx.retention.audit,
                "job_logs": tx.retention.job_logs,
                "usage": tx.retention.usage,
            }[what]
            found = await drop(before, BATCH)
        if not found:
            return dropped
        dropped += found
