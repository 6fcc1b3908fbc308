"""Who did what, and how long it is kept."""

from __future__ import annotations

from typing import Any

import pytest

from pillion.store.rows import AuditRecord
from pillion.store.transaction import Tx
from tests.store.conftest import NOW


async def begun(tx: Tx, account: str = "acc_a", at: float = NOW, action: str = "attach_adapter") -> int:
    return await tx.audit.begin(
        account, at=at, key_id="key_1", action=action, subject="/v1/x?force=true", request_id=None
    )


async def test_it_begins_without_an_outcome_and_gets_one_once(tx: Tx) -> None:
    id = await begun(tx)
    fields: dict[str, Any] = {"id": id, "account_id": "acc_a", "at": NOW, "key_id": "key_1"}
    fields |= {"action": "attach_adapter", "subject": "/v1/x?force=true", "request_id": None}
    assert await tx.audit.list("acc_a") == [AuditRecord(**fields, made=None, status=None, error=None)]
    assert not await tx.audit.end("acc_b", id, status=200)
    assert await tx.audit.end("acc_a", id, status=409, error="name_taken", made="adp_1")
    assert not await tx.audit.end("acc_a", id, status=200)
    assert await tx.audit.list("acc_a") == [
        AuditRecord(**fields, made="adp_1", status=409, error="name_taken")
    ]


async def test_the_newest_first_to_its_account_and_to_everyone(tx: Tx) -> None:
    one, two = await begun(tx), await begun(tx, "acc_b")
    three = await begun(tx, action="stop_instance")

    async def ids(**filters: Any) -> list[int]:
        return [row.id for row in await tx.everyone.audit(**filters)]

    assert [row.id for row in await tx.audit.list("acc_a")] == [three, one]
    assert [row.id for row in await tx.audit.list("acc_a", after=three, limit=1)] == [one]
    assert [row.id for row in await tx.audit.list("acc_a", action="stop_instance")] == [three]
    assert await ids() == [three, two, one]
    assert await ids(after=three, limit=1) == [two]
    assert await ids(account="acc_b") == [two]
    assert await ids(action="attach_adapter") == [two, one]


async def test_events_by_kind_subject_account_and_from_the_end(tx: Tx) -> None:
    kinds = ["loaded", "evicted", "loaded", "moved"]
    made = [await tx.events.append("acc_a", at=NOW, kind=kind, subject="s") for kind in kinds]
    other = await tx.events.append("acc_b", at=NOW, kind="loaded", subject="t")
    own = await tx.events.append(None, at=NOW, kind="loaded", subject="u")
    assert await tx.events.list("acc_a", kinds=("loaded", "moved")) == [made[0], made[2], made[3]]
    assert await tx.events.list("acc_a", newest=True, limit=2) == [made[3], made[2]]
    assert await tx.events.list("acc_a", newest=True, after=made[2].id) == [made[1], made[0]]
    assert await tx.everyone.events(kinds=("loaded",), after=made[0].id) == [made[2], other, own]
    assert await tx.everyone.events(account="acc_b") == [other]
    assert await tx.everyone.events(subject="u", newest=True) == [own]


async def test_what_is_old_goes_a_few_at_a_time(tx: Tx) -> None:
    for number in range(5):
        await tx.events.append("acc_a", at=NOW + number, kind="k", subject="s")
        await begun(tx, "acc_b", at=NOW + number)
    assert [await tx.retention.events(NOW + 3, 2) for _ in range(3)] == [2, 1, 0]
    assert [event.at for event in await tx.everyone.events()] == [NOW + 3, NOW + 4]
    assert [await tx.retention.audit(NOW + 3, 2) for _ in range(3)] == [2, 1, 0]
    assert [row.at for row in await tx.everyone.audit()] == [NOW + 4, NOW + 3]


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
async def test_logs_of_jobs_that_ended_long_ago_go_and_jobs_stay(tx: Tx, state: Any) -> None:
    for name in ("old", "young", "running"):
        await tx.jobs.create("acc_a", name, kind="k", subject={}, now=NOW)
        await tx.jobs.append_log("acc_a", name, ["one", "two"], NOW)
        await tx.everyone.claim_job("k", "me", NOW, stale_before=0)
    await tx.jobs.finish("acc_a", "old", "me", state=state, now=NOW, message="")
    await tx.jobs.finish("acc_a", "young", "me", state=state, now=NOW + 10, message="")
    assert [await tx.retention.job_logs(NOW + 5, 1) for _ in range(2)] == [2, 0]
    left = {name: len(await tx.jobs.log("acc_a", name)) for name in ("old", "young", "running")}
    assert left == {"old": 0, "young": 2, "running": 2}
    assert await tx.jobs.get("acc_a", "old") is not None
