"""Jobs: listing, following, cancelling; and the runner that works them off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import structlog

from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import ErrorView, JobView, Page
from pillion.core.errors import ConflictError, NotFoundError, PillionError
from pillion.store.rows import Job

log = structlog.get_logger(__name__)

STALE_S = 60.0
HEARTBEAT_S = 15.0
POLL_S = 5.0
FOLLOW_S = 0.25
ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Progress:
    """How a running job tells how far it is. `report` raises `JobCancelledError` once nobody wants it any more."""

    def __init__(self, control: Control, job: Job, holder: str) -> None:
        self._control, self._job, self._holder = control, job, holder

    async def report(self, progress: float, message: str) -> None:
        """`progress` from 0 to 1."""
        now = self._control.clock()
        async with self._control.db.transaction() as tx:
            held = await tx.jobs.progress(
                self._job.account_id, self._job.id, self._holder, progress=progress, message=message, now=now
            )
        if not held:
            raise JobCancelledError

    async def log(self, line: str) -> None:
        async with self._control.db.transaction() as tx:
            await tx.jobs.append_log(self._job.account_id, self._job.id, [line], self._control.clock())


class JobCancelledError(Exception):
    """The job was cancelled or taken over: let go."""


Work = Callable[[Control, Job, Progress], Awaitable[str]]
Ended = Callable[[Control, Job], Awaitable[None]]


async def listing(control: Control, who: Principal, after: str | None, limit: int) -> Page[JobView]:
    async with control.db.read() as tx:
        rows = await tx.jobs.list(who.account, after=after, limit=limit + 1)
    views = [view(row) for row in rows[:limit]]
    return Page(views, len(rows) > limit, views[-1].id if len(rows) > limit else None)


async def get(control: Control, who: Principal, id: str) -> JobView:
    async with control.db.read() as tx:
        row = await tx.jobs.get(who.account, id)
        if row is None:
            raise NotFoundError(f"you have no job {id[:80]!r}.")
        return view(row, [line.line for line in await tx.jobs.log(who.account, id)])


async def follow(control: Control, who: Principal, id: str) -> AsyncIterator[bytes]:
    """The job as JSON lines whenever it has changed, the last one when it has ended."""
    last = None
    while True:
        now = await get(control, who, id)
        if now != last:
            yield msgspec.json.encode(now) + b"\n"
            last = now
        if now.state in ENDED:
            return
        await asyncio.sleep(FOLLOW_S)


async def cancel(control: Control, who: Principal, id: str) -> JobView:
    async with control.db.transaction() as tx:
        before = await tx.jobs.get(who.account, id)
        if before is None:
            raise NotFoundError(f"you have no job {id[:80]!r}.")
        row = await tx.jobs.cancel(who.account, id, control.clock())
    if row is None:
        raise ConflictError(f"job {id} has ended already: {before.state}.")
    if before.state == "queued":  # no worker has it, so none will notice
        await control.job_ends[row.kind](control, row)
    return view(row)


def view(row: Job, log: list[str] | None = None) -> JobView:
    error = ErrorView(row.error.get("code", ""), row.error.get("message", "")) if row.error else None
    return JobView(
        row.id,
        row.kind,
        row.state,
        row.progress,
        row.message,
        row.subject,
        error,
        row.created_at,
        row.updated_at,
        log or [],
    )


async def run(control: Control, holder: str, kind: str, work: Work, ended: Ended) -> None:
    """Work off the jobs of a kind, one at a time, for ever. One whose worker died is taken over after a minute.

    `ended` is called for each that did not succeed, also for those cancelled.
    """
    control.job_ends[kind] = ended
    while True:
        seen = control.changes.count
        now = control.clock()
        async with control.db.transaction() as tx:
            job = await tx.everyone.claim_job(kind, holder, now, stale_before=now - STALE_S)
        if job is None:
            await control.changes.wait(seen, POLL_S)
            continue
        await _work(control, holder, job, work, ended)


async def _work(control: Control, holder: str, job: Job, work: Work, ended: Ended) -> None:
    try:
        message = await work(control, job, Progress(control, job, holder))
    except JobCancelledError:
        log.info("job_cancelled", job=job.id)
        await ended(control, job)
        return
    except PillionError as error:
        await _fail(control, holder, job, error)
        await ended(control, job)
        return
    except Exception as error:
        log.exception("job_failed", job=job.id)
        await _fail(control, holder, job, PillionError(f"something went wrong on our side: {error}"))
        await ended(control, job)
        return
    async with control.db.transaction() as tx:
        await tx.jobs.finish(
            job.account_id, job.id, holder, state="succeeded", now=control.clock(), message=message
        )
    control.changes.notify()


async def _fail(control: Control, holder: str, job: Job, error: PillionError) -> None:
    async with control.db.transaction() as tx:
        await tx.jobs.finish(
            job.account_id,
            job.id,
            holder,
            state="failed",
            now=control.clock(),
            message=error.message,
            error=error.body()["error"],
        )
    control.changes.notify()
