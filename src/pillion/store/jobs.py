"""Jobs, their progress and their logs. A worker claims one through `everyone`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import sqlalchemy as sa

from pillion.core.errors import NotFoundError
from pillion.store.rows import Job, LogLine
from pillion.store.session import Session, owned
from pillion.store.tables import job_log, jobs


class Jobs:
    """What `holder` writes counts only while the job runs and is its own: False tells a worker to let go."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(
        self, account: str, id: str, *, kind: str, subject: Mapping[str, Any], now: float
    ) -> Job:
        """Queued."""
        fields = {"id": id, "account_id": account, "kind": kind, "subject": dict(subject), "state": "queued"}
        values = {**fields, "progress": 0.0, "message": "", "created_at": now, "updated_at": now}
        made = await self._session.one(sa.insert(jobs).values(**values).returning(*jobs.c), Job)
        assert made is not None
        return made

    async def get(self, account: str, id: str) -> Job | None:
        return await self._session.one(sa.select(jobs).where(owned(jobs, account), jobs.c.id == id), Job)

    async def list(
        self, account: str, *, after: str | None = None, limit: int = 100, kind: str | None = None
    ) -> list[Job]:
        """Newest first; `after` is the id of the last one seen. Of an unknown one nothing comes after."""
        statement = sa.select(jobs).where(owned(jobs, account))
        if after is not None:
            last = await self.get(account, after)
            if last is None:
                return []
            older = sa.tuple_(jobs.c.created_at, jobs.c.id) < sa.tuple_(last.created_at, last.id)
            statement = statement.where(older)
        if kind is not None:
            statement = statement.where(jobs.c.kind == kind)
        newest = statement.order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
        return await self._session.all(newest.limit(limit), Job)

    async def progress(
        self, account: str, id: str, holder: str, *, progress: float, message: str, now: float
    ) -> bool:
        """`progress` 0..1."""
        return await self._held(account, id, holder, progress=progress, message=message, updated_at=now)

    async def finish(
        self,
        account: str,
        id: str,
        holder: str,
        *,
        state: Literal["succeeded", "failed"],
        now: float,
        message: str = "",
        error: Mapping[str, Any] | None = None,
    ) -> bool:
        values: dict[str, Any] = {"state": state, "message": message, "error": error and dict(error)}
        if state == "succeeded":
            values["progress"] = 1.0
        return await self._held(account, id, holder, **values, updated_at=now)

    async def cancel(self, account: str, id: str, now: float) -> Job | None:
        """None where there is none that is queued or runs."""
        statement = sa.update(jobs).where(
            owned(jobs, account), jobs.c.id == id, jobs.c.state.in_(("queued", "running"))
        )
        return await self._session.one(
            statement.values(state="cancelled", updated_at=now).returning(*jobs.c), Job
        )

    async def append_log(self, account: str, id: str, lines: Sequence[str], at: float) -> None:
        """Raises NotFoundError."""
        job = sa.select(jobs.c.id).where(owned(jobs, account), jobs.c.id == id)
        if await self._session.value(job.with_for_update(key_share=True)) is None:
            raise NotFoundError(f"There is no job {id!r}.")
        if not lines:
            return
        last = sa.select(sa.func.max(job_log.c.seq)).where(owned(job_log, account), job_log.c.job_id == id)
        first = (await self._session.value(last) or 0) + 1
        rows = [
            {"job_id": id, "account_id": account, "seq": seq, "at": at, "line": line}
            for seq, line in enumerate(lines, first)
        ]
        await self._session.run(sa.insert(job_log).values(rows))

    async def log(self, account: str, id: str, *, after: int = 0, limit: int = 1000) -> Sequence[LogLine]:
        """Lines with a `seq` above `after`; the first is 1."""
        statement = sa.select(job_log).where(
            owned(job_log, account), job_log.c.job_id == id, job_log.c.seq > after
        )
        return await self._session.all(statement.order_by(job_log.c.seq).limit(limit), LogLine)

    async def _held(self, account: str, id: str, holder: str, **values: object) -> bool:
        statement = sa.update(jobs).where(
            owned(jobs, account), jobs.c.id == id, jobs.c.state == "running", jobs.c.holder == holder
        )
        return await self._session.changed(statement.values(**values))
