"""What is told of the past, dropped once it is old. Each call drops at most `limit` rows, so that none takes long."""

from __future__ import annotations

import sqlalchemy as sa

from pillion.store.session import Session
from pillion.store.tables import audit, carries, events, job_log, jobs, usage_events
from pillion.store.usage import HOUR_S

ENDED = ("succeeded", "failed", "cancelled")


class Retention:
    """`session` is one that crosses accounts. Each gives how many rows went; `before` is seconds since the epoch."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def events(self, before: float, limit: int) -> int:
        return await self._drop(events, before, limit)

    async def audit(self, before: float, limit: int) -> int:
        return await self._drop(audit, before, limit)

    async def job_logs(self, before: float, limit: int) -> int:
        """The lines of up to `limit` jobs that ended before; the jobs stay."""
        has_lines = sa.select(job_log.c.seq).where(job_log.c.job_id == jobs.c.id).exists()
        old = sa.select(jobs.c.id).where(jobs.c.state.in_(ENDED), jobs.c.updated_at < before, has_lines)
        return await self._gone(sa.delete(job_log).where(job_log.c.job_id.in_(old.limit(limit))))

    async def usage(self, before: float, limit: int) -> int:
        """Of the first `limit` events those that are old, their accounts owing nothing since then. Their sums stay."""
        first = sa.select(usage_events.c.id).order_by(usage_events.c.id).limit(limit)
        owing = sa.select(carries.c.price_id).where(
            carries.c.account_id == usage_events.c.account_id,
            carries.c.owed > 0,
            carries.c.posted_hour * HOUR_S <= usage_events.c.at,
        )
        return await self._gone(
            sa.delete(usage_events).where(
                usage_events.c.id.in_(first), usage_events.c.at < before, ~owing.exists()
            )
        )

    async def _drop(self, table: sa.Table, before: float, limit: int) -> int:
        old = sa.select(table.c.id).where(table.c.at < before).order_by(table.c.at).limit(limit)
        return await self._gone(sa.delete(table).where(table.c.id.in_(old)))

    async def _gone(self, statement: sa.Delete) -> int:
        return (await self._session.run(statement)).rowcount
