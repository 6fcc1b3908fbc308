"""Adapters that come from a Hugging Face repository: a job that ends in a verified first version, or in nothing."""

from __future__ import annotations

import asyncio

from pillion.artifacts.hub import Hub, HubRepo
from pillion.artifacts.models import HubSource, PathSource, parse_source
from pillion.artifacts.receive import receive
from pillion.artifacts.store import Intake
from pillion.control import accounts, bases, jobs, lookup, registration, versions
from pillion.control.context import Control
from pillion.control.jobs import Progress
from pillion.control.keys import Principal
from pillion.control.views import ImportView
from pillion.core.adapters.verify import Limits
from pillion.core.errors import ConflictError, InvalidRequestError, NotFoundError
from pillion.core.names import Ref, new_id
from pillion.store.rows import Adapter, Job

KIND = "hf_import"
REPORT_S = 0.5
DOWNLOADED = 0.9  # how far an import is when all bytes are here


async def begin(
    control: Control,
    who: Principal,
    name: str,
    base: str,
    repo: str,
    revision: str | None,
    region: str | None,
) -> ImportView:
    """The adapter, in state `importing`, and the job that brings its bytes."""
    registration.check(control, name, region)
    _check_repo(repo, revision)
    await bases.base_of(control, who, base)
    async with control.db.transaction() as tx:
        row = await registration.create(control, tx, who, name, base, region, "importing")
        job = await tx.jobs.create(
            who.account,
            new_id("job", control.choice),
            kind=KIND,
            subject={"adapter": row.id, "repo": repo, "revision": revision or None, "by": who.key},
            now=control.clock(),
        )
        view = await lookup.adapter_view(control, tx, row)
    control.jobs_queued.notify()
    control.changes.notify()
    return ImportView(view, jobs.view(job))


async def begin_version(
    control: Control, who: Principal, ref: str, repo: str, revision: str | None, live: bool
) -> ImportView:
    """The adapter, and the job that brings its next version."""
    _check_repo(repo, revision)
    async with control.db.transaction() as tx:
        row = await lookup.adapter(tx, who, ref)
        if row.live_version is None:
            raise ConflictError(f"adapter {row.name!r} is still being imported; wait for its first version.")
        job = await tx.jobs.create(
            who.account,
            new_id("job", control.choice),
            kind=KIND,
            subject={
                "adapter": row.id,
                "repo": repo,
                "revision": revision or None,
                "by": who.key,
                "version": True,
                "live": live,
            },
            now=control.clock(),
        )
        view = await lookup.adapter_view(control, tx, row)
    control.jobs_queued.notify()
    return ImportView(view, jobs.view(job))


def _check_repo(repo: str, revision: str | None) -> None:
    try:
        parsed: HubSource | PathSource | None = parse_source(
            f"hf:{repo}" + (f"@{revision}" if revision else "")
        )
    except InvalidRequestError:
        parsed = None
    if parsed != HubSource(repo, revision or None):
        raise InvalidRequestError(
            f"repo {repo[:120]!r} with revision {str(revision)[:120]!r} names no repository such as owner/name.",
            param="repo",
        )


async def work(control: Control, job: Job, progress: Progress) -> str:
    """Fetch, verify, register. Safe to do again where a worker died in the middle."""
    row = await _adapter(control, job)
    further = bool(job.subject.get("version"))
    if row.live_version is not None and not further:
        return "imported"
    who = Principal(job.account_id, job.subject["by"], frozenset({"manage"}))
    base = await bases.base_of(control, who, row.base_model)
    hub = Hub(token=await accounts.hf_token(control, job.account_id))
    found = await hub.resolve(job.subject["repo"], job.subject["revision"])
    await progress.log(f"{found.repo} at {found.commit}")
    max_bytes = (await accounts.caps(control, job.account_id)).adapter_bytes
    async with control.artifacts.intake(max_bytes) as intake:
        config = await _download(hub, found, intake, max_bytes, progress)
        await progress.report(DOWNLOADED, "verifying")
        limits = Limits(control.settings.max_rank, max_bytes)
        stored = await receive(intake, config, base, limits)
        for warning in stored.verified.warnings:
            await progress.log(f"warning: {warning}")
        async with control.db.transaction() as tx:
            source = {"repo": found.repo, "commit": found.commit}
            if further:
                view, new = await versions.add(control, tx, who, row, stored, source, job.subject["live"])
                message = f"version {view.version}" + ("" if new else ", which was there already")
            else:
                await registration.first_version(control, tx, row, stored, source)
                message = "imported"
            await progress.finish(tx, message)
    control.changes.notify()
    return message


async def ended(control: Control, job: Job) -> None:
    """An import that failed or was cancelled leaves its job, which says why, and no adapter: the name is free."""
    async with control.db.transaction() as tx:
        row = await tx.adapters.by_ref(job.account_id, Ref(id=job.subject["adapter"]))
        if row is not None and row.live_version is None:
            await tx.adapters.delete(job.account_id, row.row_id)
    control.changes.notify()


async def _download(hub: Hub, found: HubRepo, intake: Intake, limit: int, progress: Progress) -> bytes | None:
    """Download while telling how far it is; stops at once where the job was cancelled."""
    seen: list[tuple[int, int | None]] = [(0, None)]
    work = asyncio.create_task(hub.download(found, intake, limit, lambda *now: seen.append(now)))
    try:
        while not work.done():
            done, total = seen[-1]
            seen[:] = seen[-1:]
            await progress.report(
                DOWNLOADED * done / total if total else 0.0, f"{done} of {total or '?'} bytes"
            )
            await asyncio.wait([work], timeout=REPORT_S)
        return work.result()
    finally:
        work.cancel()


async def _adapter(control: Control, job: Job) -> Adapter:
    async with control.db.read() as tx:
        row = await tx.adapters.by_ref(job.account_id, Ref(id=job.subject["adapter"]))
    if row is None:
        raise NotFoundError("the adapter was deleted while it was being imported.")
    return row
