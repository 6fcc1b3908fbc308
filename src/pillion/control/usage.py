"""Usage that gateways report: taken exactly once, whoever dies in between (SPEC §5)."""

from __future__ import annotations

import structlog

from pillion.control import charges
from pillion.control.context import Control
from pillion.core.usage import QUARANTINE_S, QUARANTINED, Incident, Mark, Report, Used
from pillion.store.transaction import Tx

log = structlog.get_logger(__name__)


async def take(control: Control, report: Report) -> Mark:
    """What the database has of this spool once the report is in.

    Events that are in already change nothing; those that would leave a gap are not taken, unless the spool no longer has
    what is missing, which is told.
    """
    now, changed = control.clock(), False
    async with control.db.transaction() as tx:
        mark = await tx.intake.mark(report.spool, now)
        if report.oldest > mark + 1:
            log.error("usage_missing", spool=report.spool, first=mark + 1, last=report.oldest - 1)
            mark = report.oldest - 1
        fresh = [told for told in report.told if told.seq > mark]
        if fresh and fresh[0].seq == mark + 1:
            mark = fresh[-1].seq
            used = [told for told in fresh if isinstance(told, Used)]
            parts = await charges.parts(control, tx, used)
            await charges.owe(tx, report.spool, used, parts)
            for told in fresh:
                if isinstance(told, Incident):
                    await _take(tx, told)
                    changed = True
            await tx.intake.add(report.spool, used, mark, now, [part.nanos if part else 0 for part in parts])
    if changed:
        control.changes.notify()
    return Mark(mark)


async def _take(tx: Tx, told: Incident) -> None:
    """An event, and of a quarantine what lets the other gateways keep it."""
    await tx.events.append(
        told.account,
        at=told.at,
        kind=told.kind,
        subject=f"adapter:{told.adapter}" if told.adapter else "account",
        detail={"detail": told.detail},
    )
    if told.kind == QUARANTINED and told.adapter and told.engine_name:
        await tx.adapters.refuse(told.account, told.adapter, told.engine_name, told.at + QUARANTINE_S)
