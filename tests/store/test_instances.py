"""Instances: wishes and states."""

from __future__ import annotations

from pillion.store.transaction import Tx
from tests.store.conftest import NOW

SPEC = {"replicas": {"local": 1}, "lora": {"enabled": True, "max_active": None}}


async def test_own_and_pool(tx: Tx) -> None:
    own = await tx.instances.create("acc_a", model="m", spec=SPEC, now=NOW)
    pool = await tx.instances.create(None, model="p", spec={}, now=NOW)
    assert own.spec == SPEC
    assert (own.wanted, own.state, own.generation) == ("running", "pending", 1)
    assert await tx.instances.get("acc_a", own.id) == own
    assert await tx.instances.get("acc_a", pool.id) is None
    assert await tx.instances.get("acc_a", pool.id, pool=True) == pool
    assert await tx.instances.get(None, pool.id) == pool
    assert await tx.instances.get(None, own.id) is None
    assert await tx.instances.get("acc_b", own.id, pool=True) is None
    assert await tx.everyone.instance(own.id) == own
    assert await tx.everyone.instances() == [own, pool] == await tx.everyone.wanted_instances()


async def test_list(tx: Tx) -> None:
    made = [await tx.instances.create("acc_a", model=f"m{n % 2}", spec={}, now=NOW) for n in range(4)]
    pool = await tx.instances.create(None, model="m0", spec={}, now=NOW)
    await tx.instances.create("acc_b", model="m0", spec={}, now=NOW)
    assert await tx.instances.list("acc_a") == made
    assert await tx.instances.list("acc_a", after=made[0].id, limit=2) == made[1:3]
    assert await tx.instances.list("acc_a", model="m0", pool=True) == [made[0], made[2], pool]
    assert await tx.instances.list(None) == [pool]
    await tx.instances.stop("acc_a", made[0].id, NOW)
    assert await tx.instances.list("acc_a", wanted=True) == made[1:]


async def test_stop_and_what_a_late_controller_says(tx: Tx) -> None:
    made = await tx.instances.create("acc_a", model="m", spec={}, now=NOW)
    assert await tx.instances.stop("acc_b", made.id, NOW) is None
    running = await tx.instances.set_state("acc_a", made.id, "running", NOW)
    assert running is not None
    assert running.state == "running"

    stopping = await tx.instances.stop("acc_a", made.id, NOW + 1, reason="user")
    assert stopping is not None
    assert (stopping.wanted, stopping.state, stopping.stopped_at) == ("stopped", "stopping", None)
    for late in (
        "running",
        "failed",
    ):  # else nobody would look at it any more, and it would never be `stopped`
        assert await tx.instances.set_state("acc_a", made.id, late, NOW + 2) is None
    assert await tx.everyone.wanted_instances() == []
    assert await tx.everyone.unfinished_instances() == [stopping]

    stopped = await tx.instances.set_state("acc_a", made.id, "stopped", NOW + 3)
    assert stopped is not None
    assert (stopped.state, stopped.stopped_at, stopped.termination_reason) == ("stopped", NOW + 3, "user")
    assert await tx.instances.stop("acc_a", made.id, NOW + 4, reason="again") == stopped
    assert await tx.everyone.unfinished_instances() == []


async def test_a_failed_one_is_stopped_like_any(tx: Tx) -> None:
    made = await tx.instances.create("acc_a", model="m", spec={}, now=NOW)
    failed = await tx.instances.set_state("acc_a", made.id, "failed", NOW, reason="start_failed")
    assert await tx.everyone.unfinished_instances() == [failed]
    stopped = await tx.instances.stop("acc_a", made.id, NOW + 1, reason="user")
    assert stopped is not None
    assert (stopped.state, stopped.termination_reason) == ("stopping", "start_failed")
    assert await tx.everyone.unfinished_instances() == [stopped]
