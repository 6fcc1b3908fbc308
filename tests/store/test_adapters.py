"""Adapters, labels, versions and registered models."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pillion.core.errors import AdapterInUseError, ConflictError, NameTakenError, NotFoundError
from pillion.core.names import Ref
from pillion.store.database import Database
from pillion.store.rows import Adapter, AdapterVersion
from pillion.store.transaction import Tx
from tests.store.conftest import NOW, two_accounts

MODEL: dict[str, Any] = {"source": "hf:x/y", "kind": "chat", "lora": True, "now": NOW}


async def adapter(tx: Tx, name: str, account: str = "acc_a", **fields: Any) -> Adapter:
    return await tx.adapters.create(
        account, f"adp_{account}{name}", **{"name": name, "base_model": "base", "now": NOW, **fields}
    )


async def version(tx: Tx, made: Adapter, digest: str = "d1", now: float = NOW) -> AdapterVersion:
    return await tx.versions.add(
        made.account_id,
        made.row_id,
        digest=digest,
        rank=8,
        alpha=16.5,
        target_modules=["q_proj", "v_proj"],
        size_bytes=2**40,
        source={"upload": "x"},
        warnings=["w"],
        now=now,
    )


async def test_by_ref(tx: Tx) -> None:
    made = await adapter(tx, "one", region="local")
    for ref in (Ref(id=made.id), Ref(row_id=made.row_id), Ref(name="one")):
        assert await tx.adapters.by_ref("acc_a", ref) == made
        assert await tx.adapters.by_ref("acc_b", ref) is None
    assert await tx.adapters.by_ref("acc_a", Ref(name="two")) is None
    assert (made.label, made.state, made.live_version, made.region) == ("one", "registered", None, "local")


async def test_a_name_is_taken_once_in_an_account(tx: Tx) -> None:
    await adapter(tx, "one")
    with pytest.raises(NameTakenError, match="an adapter named 'one' already"):
        await tx.adapters.create("acc_a", "adp_2", name="one", base_model="base", now=NOW)
    await adapter(tx, "one", "acc_b")
    assert await tx.accounts.has("acc_a", "adapters") == 1


async def test_an_account_that_is_not_there(tx: Tx) -> None:
    with pytest.raises(NotFoundError):
        await adapter(tx, "one", "acc_x")


async def test_list_in_pages(tx: Tx) -> None:
    made = [await adapter(tx, f"a{number}") for number in range(5)]
    await adapter(tx, "a9", "acc_b")
    assert await tx.adapters.list("acc_a") == made
    assert await tx.adapters.list("acc_a", limit=2) == made[:2]
    assert await tx.adapters.list("acc_a", after=made[1].row_id, limit=2) == made[2:4]
    assert await tx.adapters.list("acc_a", after=made[4].row_id) == []


async def test_list_filters(tx: Tx) -> None:
    one = await adapter(tx, "my_one", label="first")
    two = await adapter(tx, "mytwo", base_model="other")
    assert await tx.adapters.list("acc_a", base="other") == [two]
    assert await tx.adapters.list("acc_a", q="FIR") == [one]
    assert await tx.adapters.list("acc_a", q="y_o") == [one]
    assert await tx.adapters.list("acc_a", q="y_t") == []
    assert await tx.adapters.list("acc_a", q="%") == []
    assert await tx.adapters.list("acc_a", q="\x00") == []
    assert await tx.adapters.list("acc_a", q="", base="base") == [one]


async def test_row_ids_are_never_used_again(database: Database) -> None:
    seen = []
    async with database.transaction() as tx:
        await two_accounts(tx)
    for _ in range(3):
        async with database.transaction() as tx:
            seen.append((await adapter(tx, "one")).row_id)
        async with database.transaction() as tx:
            assert await tx.adapters.delete("acc_a", seen[-1])
    assert seen == sorted(set(seen))
    assert len(seen) == 3


async def test_former_labels_stay(tx: Tx) -> None:
    made = await adapter(tx, "one")
    for at, label in enumerate(["two", "three", "two"], 1):
        changed = await tx.adapters.rename("acc_a", made.row_id, label, NOW + at)
        assert changed is not None
        assert changed.label == label
    assert await tx.adapters.labels_of("acc_a", made.row_id) == ["two", "three", "one"]
    assert await tx.adapters.labels_of("acc_b", made.row_id) == []
    assert await tx.adapters.rename("acc_b", made.row_id, "x", NOW) is None


async def test_a_model_and_an_adapter_do_not_share_a_name(tx: Tx) -> None:
    made = await adapter(tx, "one", label="eins")
    await tx.adapters.rename("acc_a", made.row_id, "uno", NOW)
    for name in ("one", "eins", "uno"):
        with pytest.raises(NameTakenError, match="An adapter of yours is or was called"):
            await tx.models.create("acc_a", name=name, **MODEL)
        await tx.models.create("acc_b", name=name, **MODEL)
    await tx.models.create("acc_a", name="model", **MODEL)
    with pytest.raises(NameTakenError, match="name 'model' is the name of a model"):
        await adapter(tx, "model")
    with pytest.raises(NameTakenError, match="label 'model'"):
        await adapter(tx, "two", label="model")
    with pytest.raises(NameTakenError, match="label 'model'"):
        await tx.adapters.rename("acc_a", made.row_id, "model", NOW)


async def test_a_model_and_an_adapter_made_at_once_do_not_share_a_name(database: Database) -> None:
    async with database.transaction() as tx:
        await two_accounts(tx)

    async def make(number: int) -> None:
        async with database.transaction() as tx:
            if number % 2:
                await adapter(tx, f"n{number // 2}")
            else:
                await tx.models.create("acc_a", name=f"n{number // 2}", **MODEL)

    results = await asyncio.gather(*(make(number) for number in range(20)), return_exceptions=True)
    failed = [isinstance(result, NameTakenError) for result in results]
    assert [sum(failed[pair : pair + 2]) for pair in range(0, 20, 2)] == [1] * 10
    assert sum(result is None for result in results) == 10


async def test_models(tx: Tx) -> None:
    made = await tx.models.create("acc_a", name="m", revision="r", region="local", image="i", **MODEL)
    with pytest.raises(NameTakenError, match="a model named 'm' already"):
        await tx.models.create("acc_a", name="m", **MODEL)
    assert await tx.models.get("acc_a", "m") == made
    assert await tx.models.get("acc_b", "m") is None
    assert await tx.models.list("acc_a") == [made] == await tx.everyone.models()
    assert await tx.models.list("acc_a", after=made.id) == []
    assert not await tx.models.delete("acc_b", "m")
    assert await tx.models.delete("acc_a", "m")
    assert not await tx.models.delete("acc_a", "m")


async def test_a_model_in_use_stays(tx: Tx) -> None:
    await tx.models.create("acc_a", name="m", **MODEL)
    made = await adapter(tx, "one", base_model="m")
    with pytest.raises(ConflictError, match="base of your adapter 'one'"):
        await tx.models.delete("acc_a", "m")
    await tx.adapters.delete("acc_a", made.row_id)
    instance = await tx.instances.create("acc_a", model="m", spec={}, now=NOW)
    with pytest.raises(ConflictError, match=f"instance {instance.id} runs"):
        await tx.models.delete("acc_a", "m")
    await tx.instances.stop("acc_a", instance.id, NOW)
    assert await tx.models.delete("acc_a", "m")


async def test_versions(tx: Tx) -> None:
    made = await adapter(tx, "one")
    first, second = await version(tx, made), await version(tx, made, "d2", NOW + 1)
    assert (first.version, second.version) == (1, 2)
    assert (first.alpha, first.target_modules, first.warnings) == (16.5, ["q_proj", "v_proj"], ["w"])
    assert (first.size_bytes, first.source) == (2**40, {"upload": "x"})
    assert await tx.versions.get("acc_a", made.row_id, 2) == second
    assert await tx.versions.get("acc_b", made.row_id, 2) is None
    assert await tx.versions.list("acc_a", made.row_id) == [first, second]
    with pytest.raises(NotFoundError):
        await tx.versions.add(
            "acc_b",
            made.row_id,
            digest="d",
            rank=1,
            alpha=1,
            target_modules=[],
            size_bytes=1,
            source={},
            now=NOW,
        )


async def test_versions_added_at_once_are_numbered(database: Database) -> None:
    async with database.transaction() as tx:
        await two_accounts(tx)
        made = await adapter(tx, "one")

    async def add() -> int:
        async with database.transaction() as tx:
            return (await version(tx, made)).version

    assert sorted(await asyncio.gather(*(add() for _ in range(10)))) == list(range(1, 11))


async def test_digests(tx: Tx) -> None:
    one, two = await adapter(tx, "one"), await adapter(tx, "one", "acc_b")
    await version(tx, one)
    await version(tx, two)
    await version(tx, two, "d2")
    assert [await tx.everyone.digest_uses(digest) for digest in ("d1", "d2", "d3")] == [2, 1, 0]
    assert await tx.everyone.digests() == {"d1", "d2"}


async def test_live_and_state(tx: Tx) -> None:
    made = await adapter(tx, "one", state="importing")
    await version(tx, made)
    assert await tx.adapters.set_live("acc_a", made.row_id, 2) is None
    assert await tx.adapters.set_live("acc_b", made.row_id, 1) is None
    assert await tx.adapters.set_state("acc_b", made.row_id, "failed") is None
    live = await tx.adapters.set_live("acc_a", made.row_id, 1)
    assert live is not None
    assert live.live_version == 1
    changed = await tx.adapters.set_state("acc_a", made.row_id, "registered")
    assert changed is not None
    assert changed.state == "registered"


async def test_deleting_takes_all_of_it(tx: Tx) -> None:
    made = await adapter(tx, "one")
    await version(tx, made)
    assert not await tx.adapters.delete("acc_b", made.row_id)
    assert await tx.adapters.delete("acc_a", made.row_id)
    assert not await tx.adapters.delete("acc_a", made.row_id)
    assert await tx.versions.list("acc_a", made.row_id) == []
    assert await tx.adapters.labels_of("acc_a", made.row_id) == []
    await tx.models.create("acc_a", name="one", **MODEL)


async def test_an_adapter_in_use_stays(tx: Tx) -> None:
    made = await adapter(tx, "one")
    instance = await tx.instances.create("acc_a", model="base", spec={}, now=NOW)
    attachment = await tx.attachments.create(
        "acc_a",
        adapter_row_id=made.row_id,
        instance_id=instance.id,
        hold="attached",
        capacity=1,
        wanted=1,
        now=NOW,
    )
    with pytest.raises(AdapterInUseError, match="detach it first"):
        await tx.adapters.delete("acc_a", made.row_id)
    assert await tx.adapters.labels_of("acc_a", made.row_id) == ["one"]
    await tx.attachments.delete("acc_a", attachment.id, in_any_state=True)
    assert await tx.adapters.delete("acc_a", made.row_id)
