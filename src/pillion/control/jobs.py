"""Jobs: listing, following, cancelling; and the runner that works them off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import structlog

from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import ErrorView, JobView, Page
from pillion.core.errors import ConflictError, NotFoundError, PillionError, UnavailableError
from pillion.store.rows import Job
from pillion.store.transaction import Tx

log = structlog.get_logger(__name__)

STALE_S = 60.0
HEARTBEAT_S = 15.0
POLL_S = 5.0
FOLLOW_S = 0.25
ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Progress:
    """How a running job tells how far it is, and that its worker lives."""

    def __init__(self, control: Control, job: Job, holder: str) -> None:
        self._control, self._job, self._holder = control, job, holder
        self._last = (job.progress, job.message)

    async def report(self, progress: float, message: str) -> None:
        """`progress` from 0 to 1. Raises `JobCancelledError` once nobody wants it any more."""
        self._last = (progress, message)
        await self.beat()

    async def beat(self) -> None:
        """Say the last again, lest the job be taken for abandoned. A database that is away stops no work."""
        progress, message = self._last
        now, job = self._control.clock(), self._job
        try:
            async with self._control.db.transaction() as tx:
                held = await tx.jobs.progress(
                    job.account_id, job.id, self._holder, progress=progress, message=message, now=now
                )
        except UnavailableError as error:
            log.warning("progress_not_written", job=job.id, error=error.message)
            return
        if not held:
            raise JobCancelledError

    async def finish(self, tx: Tx, message: str) -> None:
        """The job has succeeded if `tx` commits: with what it made, or not at all. Raises `JobCancelledError`."""
        now, job = self._control.clock(), self._job
        if not await tx.jobs.finish(
            job.account_id, job.id, self._holder, state="succeeded", now=now, message=message
        ):
            raise JobCancelledError

    async def log(self, line: str) -> None:
        async with self._control.db.transaction() as tx:
            await tx.jobs.append_log(self._job.account_id, self._job.id, [line], self._control.clock())


class JobCancelledError(Exception):
    """The job was cancelled or taken over: let go."""


# Gives a message; a job that was not finished by then has succeeded.
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
    ended = control.job_ends.get(row.kind)
    if ended is not None:  # a worker would do it too, if there is one
        await ended(control, row)
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
        seen = control.jobs_queued.count
        try:
            job = await _claim(control, holder, kind)
            if job is not None:
                await _work(control, holder, job, work, ended)
                continue
        except UnavailableError as error:  # a job it had is taken over once it is stale
            log.warning("database_away", error=error.message)
        await control.jobs_queued.wait(seen, POLL_S)


async def _claim(control: Control, holder: str, kind: str) -> Job | None:
    now = control.clock()
    async with control.db.transaction() as tx:
        return await tx.everyone.claim_job(kind, holder, now, stale_before=now - STALE_S)


async def _work(control: Control, holder: str, job: Job, work: Work, ended: Ended) -> None:
    progress = Progress(control, job, holder)
    try:
        message = await _beating(work(control, job, progress), progress)
    except JobCancelledError:
        log.info("job_let_go", job=job.id)
    except PillionError as error:
        await _fail(control, holder, job, error)
    except Exception:
        log.exception("job_failed", job=job.id)
        await _fail(
            control, holder, job, PillionError("something went wrong on our side; the log has the details.")
        )
    else:
        await _succeed(control, holder, job, message)
        return
    async with control.db.read() as tx:
        now = await tx.jobs.get(job.account_id, job.id)
    if now is not None and now.state in ("failed", "cancelled"):  # else another worker has taken it over
        await ended(control, job)


async def _beating(work: Awaitable[str], progress: Progress) -> str:
    """What the work gives. It is stopped where the job is not ours any more, and has then cleaned up."""
    working = asyncio.ensure_future(work)
    try:
        while not working.done():
            await asyncio.wait([working], timeout=HEARTBEAT_S)
            if not working.done():
                await progress.beat()
        return working.result()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _succeed(control: Control, holder: str, job: Job, message: str) -> None:
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
