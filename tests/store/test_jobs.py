"""Jobs, their logs, and events."""

from __future__ import annotations

import asyncio

import pytest

from pillion.core.errors import NotFoundError
from pillion.store.database import Database
from pillion.store.rows import Job
from pillion.store.transaction import Tx
from tests.store.conftest import NOW, two_accounts


async def job(tx: Tx, number: int, account: str = "acc_a", kind: str = "import") -> Job:
    return await tx.jobs.create(
        account, f"job_{number}", kind=kind, subject={"n": number}, now=NOW + number // 2
    )


async def test_list_newest_first(tx: Tx) -> None:
    made = [await job(tx, number) for number in range(5)]
    await job(tx, 7, "acc_b")
    made.reverse()
    assert await tx.jobs.list("acc_a") == made
    assert await tx.jobs.list("acc_a", limit=2) == made[:2]
    assert await tx.jobs.list("acc_a", after=made[1].id, limit=2) == made[2:4]
    assert await tx.jobs.list("acc_a", after="job_7") == []
    assert await tx.jobs.list("acc_a", kind="other") == []
    assert await tx.jobs.get("acc_b", "job_1") is None


async def test_a_job_from_end_to_end(tx: Tx) -> None:
    made = await job(tx, 1)
    assert (made.state, made.progress, made.subject, made.error) == ("queued", 0.0, {"n": 1}, None)
    assert await tx.everyone.claim_job("other", "w1", NOW, stale_before=NOW) is None
    claimed = await tx.everyone.claim_job("import", "w1", NOW + 1, stale_before=NOW)
    assert claimed is not None
    assert (claimed.id, claimed.state, claimed.holder) == ("job_1", "running", "w1")
    assert await tx.everyone.claim_job("import", "w2", NOW + 2, stale_before=NOW) is None
    assert await tx.jobs.progress("acc_a", "job_1", "w1", progress=0.5, message="half", now=NOW + 2)
    assert not await tx.jobs.progress("acc_b", "job_1", "w1", progress=0.6, message="", now=NOW + 2)
    assert await tx.jobs.finish("acc_a", "job_1", "w1", state="succeeded", now=NOW + 3, message="done")
    done = await tx.jobs.get("acc_a", "job_1")
    assert done is not None
    assert (done.state, done.progress, done.message, done.updated_at) == ("succeeded", 1.0, "done", NOW + 3)
    assert await tx.jobs.cancel("acc_a", "job_1", NOW) is None


async def test_a_worker_that_went_away_loses_its_job(tx: Tx) -> None:
    await job(tx, 1)
    await tx.everyone.claim_job("import", "w1", NOW, stale_before=NOW)
    taken = await tx.everyone.claim_job("import", "w2", NOW + 60, stale_before=NOW + 30)
    assert taken is not None
    assert taken.holder == "w2"
    assert not await tx.jobs.progress("acc_a", "job_1", "w1", progress=0.9, message="", now=NOW + 61)
    assert not await tx.jobs.finish("acc_a", "job_1", "w1", state="succeeded", now=NOW + 61)
    error = {"code": "adapter_invalid", "message": "bad"}
    assert await tx.jobs.finish("acc_a", "job_1", "w2", state="failed", now=NOW + 62, error=error)
    failed = await tx.jobs.get("acc_a", "job_1")
    assert failed is not None
    assert (failed.state, failed.error, failed.progress) == ("failed", error, 0.0)


async def test_a_cancelled_job_takes_no_more_progress(tx: Tx) -> None:
    await job(tx, 1)
    await tx.everyone.claim_job("import", "w1", NOW, stale_before=NOW)
    assert await tx.jobs.cancel("acc_b", "job_1", NOW) is None
    cancelled = await tx.jobs.cancel("acc_a", "job_1", NOW)
    assert cancelled is not None
    assert cancelled.state == "cancelled"
    assert not await tx.jobs.progress("acc_a", "job_1", "w1", progress=0.9, message="", now=NOW)
    assert await tx.everyone.claim_job("import", "w1", NOW, stale_before=NOW + 1) is None


async def test_each_job_is_claimed_once(database: Database) -> None:
    async with database.transaction() as tx:
        await two_accounts(tx)
        for number in range(6):
            await job(tx, number)

    async def claim(worker: int) -> str | None:
        async with database.transaction() as tx:
            claimed = await tx.everyone.claim_job("import", f"w{worker}", NOW, stale_before=NOW - 1)
            return None if claimed is None else claimed.id

    claims = await asyncio.gather(*(claim(worker) for worker in range(6)))
    assert sorted(filter(None, claims)) == [f"job_{number}" for number in range(6)]


async def test_log(tx: Tx) -> None:
    await job(tx, 1)
    await tx.jobs.append_log("acc_a", "job_1", ["one", "two"], NOW)
    await tx.jobs.append_log("acc_a", "job_1", [], NOW)
    await tx.jobs.append_log("acc_a", "job_1", ["three\x00"], NOW + 1)
    lines = await tx.jobs.log("acc_a", "job_1")
    assert [(line.seq, line.at, line.line) for line in lines] == [
        (1, NOW, "one"),
        (2, NOW, "two"),
        (3, NOW + 1, "three\ufffd"),
    ]
    assert await tx.jobs.log("acc_a", "job_1", after=1, limit=1) == lines[1:2]
    assert await tx.jobs.log("acc_b", "job_1") == []
    with pytest.raises(NotFoundError):
        await tx.jobs.append_log("acc_b", "job_1", ["x"], NOW)


async def test_log_lines_appended_at_once(database: Database) -> None:
    async with database.transaction() as tx:
        await two_accounts(tx)
        await job(tx, 1)

    async def append() -> None:
        async with database.transaction() as tx:
            await tx.jobs.append_log("acc_a", "job_1", ["x", "y"], NOW)

    await asyncio.gather(*(append() for _ in range(8)))
    async with database.read() as tx:
        assert [line.seq for line in await tx.jobs.log("acc_a", "job_1")] == list(range(1, 17))


async def test_events(tx: Tx) -> None:
    one = await tx.events.append(
        "acc_a", at=NOW, kind="attached", subject="adapter:1", detail={"by": "key_1"}
    )
    two = await tx.events.append("acc_a", at=NOW, kind="detached", subject="adapter:2")
    three = await tx.events.append(None, at=NOW, kind="restarted", subject="replica:1")
    assert await tx.events.list("acc_a") == [one, two]
    assert await tx.events.list("acc_a", after=one.id) == [two]
    assert await tx.events.list("acc_a", limit=1) == [one]
    assert await tx.events.list("acc_a", subject="adapter:2") == [two]
    assert await tx.events.list("acc_b") == []
    assert await tx.events.list(None) == [three]
    assert await tx.everyone.events(after=one.id) == [two, three]
    assert (one.detail, two.detail) == ({"by": "key_1"}, {})
