"""Attachments: who holds a slot, and that there are never more than there are."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pillion.core.errors import AlreadyAttachedError, ConflictError, InstanceAtCapacityError, NotFoundError
from pillion.core.replica import Failure
from pillion.store.database import Database
from pillion.store.rows import Attachment, Instance
from pillion.store.transaction import Tx
from tests.store.conftest import NOW, two_accounts


async def adapter(tx: Tx, name: str, account: str = "acc_a") -> int:
    return (
        await tx.adapters.create(account, f"adp_{account}{name}", name=name, base_model="m", now=NOW)
    ).row_id


@pytest.fixture
async def instance(tx: Tx) -> Instance:
    return await tx.instances.create("acc_a", model="m", spec={}, now=NOW)


async def attach(
    tx: Tx, row_id: int, instance: Instance, account: str = "acc_a", **fields: Any
) -> Attachment:
    given = {"hold": "attached", "capacity": 2, "wanted": 3, "now": NOW, **fields}
    return await tx.attachments.create(account, adapter_row_id=row_id, instance_id=instance.id, **given)


async def test_create_and_find(tx: Tx, instance: Instance) -> None:
    row_id = await adapter(tx, "one")
    made = await attach(tx, row_id, instance, expires_at=NOW + 9, session_key="s", pinned=True)
    assert (made.state, made.ready, made.wanted, made.drain_deadline_s) == ("attaching", 0, 3, 30.0)
    assert (made.expires_at, made.session_key, made.pinned) == (NOW + 9, "s", True)
    assert await tx.attachments.get("acc_a", made.id) == made
    assert await tx.attachments.get("acc_b", made.id) is None
    assert await tx.attachments.find("acc_a", row_id, instance.id) == made
    for chosen in ({}, {"adapter_row_id": row_id}, {"instance_id": instance.id}, {"session_key": "s"}):
        assert await tx.attachments.list("acc_a", **chosen) == [made]
        assert await tx.attachments.list("acc_b", **chosen) == []
    assert await tx.attachments.list("acc_a", session_key="t") == []
    assert await tx.everyone.attachments() == await tx.everyone.attachments(instance_id=instance.id) == [made]
    assert await tx.everyone.attachments(instance_id=instance.id + 1) == []


async def test_twice(tx: Tx, instance: Instance) -> None:
    row_id = await adapter(tx, "one")
    made = await attach(tx, row_id, instance)
    with pytest.raises(AlreadyAttachedError, match="is attached on instance"):
        await attach(tx, row_id, instance)
    await tx.attachments.mark_detaching("acc_a", made.id)
    with pytest.raises(AlreadyAttachedError, match="is still being detached from instance"):
        await attach(tx, row_id, instance)


async def test_what_is_not_ones_own(tx: Tx, instance: Instance) -> None:
    mine, theirs = await adapter(tx, "one"), await adapter(tx, "one", "acc_b")
    pool = await tx.instances.create(None, model="m", spec={}, now=NOW)
    with pytest.raises(NotFoundError, match="no adapter"):
        await attach(tx, theirs, instance)
    with pytest.raises(NotFoundError, match="no instance"):
        await attach(tx, theirs, instance, "acc_b")
    await attach(tx, mine, pool, hold="loaded")
    await attach(tx, theirs, pool, "acc_b", hold="loaded")
    await tx.instances.stop(None, pool.id, NOW)
    with pytest.raises(ConflictError, match="is stopped or stopping"):
        await attach(tx, await adapter(tx, "two"), pool)


async def test_what_holds_a_slot(tx: Tx, instance: Instance) -> None:
    names = [await adapter(tx, name) for name in "abcdefgh"]
    await attach(tx, names[0], instance)
    await attach(tx, names[1], instance, hold="loaded")
    await attach(tx, names[2], instance, pinned=True, hold="loaded", expires_at=NOW + 5)
    for hold in ("attached", "loaded"):
        with pytest.raises(
            InstanceAtCapacityError, match=r"model instance at capacity: instance \d+ holds 2 of 2"
        ):
            await attach(tx, names[3], instance, hold=hold)
    made = await attach(tx, names[3], instance, now=NOW + 5)  # the pinned one has expired
    await tx.attachments.mark_detaching("acc_a", made.id)
    with pytest.raises(InstanceAtCapacityError):
        await attach(tx, names[4], instance, now=NOW + 5)  # detaching still holds it
    assert await tx.attachments.delete("acc_a", made.id)
    await attach(tx, names[4], instance, now=NOW + 5)


async def test_a_full_pool_is_full_for_all(tx: Tx) -> None:
    pool = await tx.instances.create(None, model="m", spec={}, now=NOW)
    await attach(tx, await adapter(tx, "one"), pool, hold="loaded", pinned=True, capacity=1)
    theirs = await adapter(tx, "one", "acc_b")
    with pytest.raises(InstanceAtCapacityError):
        await attach(tx, theirs, pool, "acc_b", hold="loaded", capacity=1)


async def test_renew(tx: Tx, instance: Instance) -> None:
    one, two = await adapter(tx, "one"), await adapter(tx, "two")
    made = await attach(tx, one, instance, hold="loaded", capacity=1)
    await attach(tx, two, instance, capacity=1)
    fields: dict[str, Any] = {"expires_at": NOW + 1, "session_key": "s", "pinned": True, "now": NOW}
    with pytest.raises(InstanceAtCapacityError):
        await tx.attachments.renew("acc_a", made.id, hold="loaded", capacity=1, **fields)
    with pytest.raises(NotFoundError):
        await tx.attachments.renew("acc_b", made.id, hold="loaded", capacity=2, **fields)
    held = await tx.attachments.renew("acc_a", made.id, hold="attached", capacity=2, **fields)
    assert (held.hold, held.pinned, held.expires_at, held.session_key) == ("attached", True, NOW + 1, "s")
    again = await tx.attachments.renew("acc_a", made.id, hold="attached", capacity=2, **fields)
    assert again == held  # it does not count against itself

    await tx.attachments.update_state(
        "acc_a", made.id, state="failed", ready=1, wanted=2, error=Failure("bad", "it is")
    )
    anew = await tx.attachments.renew("acc_a", made.id, hold="attached", capacity=2, **fields)
    assert (anew.state, anew.ready, anew.error_code, anew.error_message) == ("attaching", 0, None, None)

    await tx.attachments.mark_detaching("acc_a", made.id, drain_deadline_s=0.0)
    anew = await tx.attachments.renew("acc_a", made.id, hold="loaded", capacity=2, **fields)
    assert (anew.state, anew.drain_deadline_s) == ("attaching", 30.0), (
        "it was cut off then, and not ever after"
    )


async def test_states(tx: Tx, instance: Instance) -> None:
    made = await attach(tx, await adapter(tx, "one"), instance)
    error = Failure("adapter_ineffective", "no difference")
    assert await tx.attachments.update_state("acc_a", made.id, state="failed", ready=0, wanted=2, error=error)
    failed = await tx.attachments.get("acc_a", made.id)
    assert failed is not None
    assert (failed.state, failed.wanted, failed.error_code) == ("failed", 2, "adapter_ineffective")
    assert await tx.attachments.update_state("acc_a", made.id, state="ready", ready=2, wanted=2)
    ready = await tx.attachments.get("acc_a", made.id)
    assert ready is not None
    assert (ready.state, ready.ready, ready.error_message) == ("ready", 2, None)

    assert not await tx.attachments.mark_detaching("acc_b", made.id)
    assert await tx.attachments.mark_detaching("acc_a", made.id, drain_deadline_s=5)
    assert await tx.attachments.mark_detaching("acc_a", made.id)
    assert not await tx.attachments.update_state("acc_a", made.id, state="ready", ready=2, wanted=2)
    gone = await tx.attachments.get("acc_a", made.id)
    assert gone is not None
    assert (gone.state, gone.drain_deadline_s) == ("detaching", 5.0)
    assert await tx.everyone.attachments(detaching=False) == []
    assert not await tx.attachments.delete("acc_b", made.id)
    assert await tx.attachments.delete("acc_a", made.id)
    assert not await tx.attachments.update_state("acc_a", made.id, state="ready", ready=2, wanted=2)


async def test_only_what_is_detaching_is_deleted_or_what_is_gone_with_its_instance(
    tx: Tx, instance: Instance
) -> None:
    made = await attach(tx, await adapter(tx, "one"), instance)
    assert not await tx.attachments.delete("acc_a", made.id)
    assert not await tx.attachments.delete("acc_b", made.id, in_any_state=True)
    assert await tx.attachments.get("acc_a", made.id, lock=True) == made
    assert await tx.attachments.delete("acc_a", made.id, in_any_state=True)


async def test_twenty_at_once_on_three_slots(database: Database) -> None:
    async with database.transaction() as tx:
        await two_accounts(tx)
        instance = await tx.instances.create("acc_a", model="m", spec={}, now=NOW)
        names = [await adapter(tx, f"a{number}") for number in range(20)]

    async def one(row_id: int) -> None:
        async with database.transaction() as tx:
            await attach(tx, row_id, instance, capacity=3)

    results = await asyncio.gather(*map(one, names), return_exceptions=True)
    assert [result is None for result in results].count(True) == 3
    assert [isinstance(result, InstanceAtCapacityError) for result in results].count(True) == 17
    again = await asyncio.gather(*map(one, names), return_exceptions=True)
    assert [isinstance(result, InstanceAtCapacityError) for result in again].count(True) == 17
    assert [isinstance(result, AlreadyAttachedError) for result in again].count(True) == 3


async def test_the_same_one_at_once(database: Database) -> None:
    async with database.transaction() as tx:
        await two_accounts(tx)
        instance = await tx.instances.create("acc_a", model="m", spec={}, now=NOW)
        row_id = await adapter(tx, "one")

    async def one() -> None:
        async with database.transaction() as tx:
            await attach(tx, row_id, instance)

    results = await asyncio.gather(*(one() for _ in range(8)), return_exceptions=True)
    assert [isinstance(result, AlreadyAttachedError) for result in results].count(True) == 7


async def test_attach_and_delete_at_once(database: Database) -> None:
    """Either the adapter is attached and stays, or it is gone and was not found."""
    async with database.transaction() as tx:
        await two_accounts(tx)
        instance = await tx.instances.create("acc_a", model="m", spec={}, now=NOW)
        names = [await adapter(tx, f"a{number}") for number in range(8)]

    async def attaching(row_id: int) -> None:
        async with database.transaction() as tx:
            await attach(tx, row_id, instance, capacity=64)

    async def deleting(row_id: int) -> None:
        async with database.transaction() as tx:
            await tx.adapters.delete("acc_a", row_id)

    both = [task for row_id in names for task in (attaching(row_id), deleting(row_id))]
    results = await asyncio.gather(*both, return_exceptions=True)
    outcomes = [
        (type(a).__name__, type(b).__name__) for a, b in zip(results[::2], results[1::2], strict=True)
    ]
    assert set(outcomes) <= {("NotFoundError", "NoneType"), ("NoneType", "AdapterInUseError")}


async def test_asked_for_again_while_it_is_deleted(database: Database) -> None:
    """Either it is held again and stays, or it was gone before and the load begins anew. No wish is lost."""
    async with database.transaction() as tx:
        await two_accounts(tx)
        instance = await tx.instances.create("acc_a", model="m", spec={}, now=NOW)
        rows = [await adapter(tx, f"a{number}") for number in range(8)]
        made = [await attach(tx, row_id, instance, capacity=64, hold="loaded") for row_id in rows]
        for one in made:
            await tx.attachments.mark_detaching("acc_a", one.id)
    held: dict[str, Any] = {"hold": "loaded", "pinned": False, "expires_at": None, "session_key": None}

    async def loading(row_id: int) -> int:
        async with database.transaction() as tx:
            await tx.attachments.lock_instance("acc_a", instance.id)
            there = await tx.attachments.find("acc_a", row_id, instance.id, lock=True)
            if there is None:
                return (await attach(tx, row_id, instance, capacity=64, hold="loaded")).id
            return (await tx.attachments.renew("acc_a", there.id, capacity=64, now=NOW, **held)).id

    async def deleting(id: int) -> bool:
        async with database.transaction() as tx:
            return await tx.attachments.delete("acc_a", id)

    both = [task for one in made for task in (loading(one.adapter_row_id), deleting(one.id))]
    results = await asyncio.gather(*both)
    async with database.read() as tx:
        there = {row.id: row.state for row in await tx.attachments.list("acc_a")}
    assert there == dict.fromkeys(results[::2], "attaching")
    assert [id != one.id for id, one in zip(results[::2], made, strict=True)] == results[1::2]
