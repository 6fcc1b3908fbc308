"""Leases and their fence; settings and secrets."""

from __future__ import annotations

import asyncio

import pytest

from pillion.store.database import Database
from pillion.store.leases import LeaseLostError
from pillion.store.transaction import Tx
from tests.store.conftest import NOW, two_accounts


async def test_one_holder_at_a_time(tx: Tx) -> None:
    first = await tx.leases.acquire("c", "h1", NOW, 10)
    assert first is not None
    assert (first.token, first.expires_at) == (1, NOW + 10)
    assert await tx.leases.acquire("c", "h2", NOW + 9, 10) is None
    assert await tx.leases.acquire("other", "h2", NOW, 10) is not None
    await tx.leases.renew("c", first.token, NOW + 9, 10)
    assert await tx.leases.acquire("c", "h2", NOW + 18, 10) is None
    await tx.leases.check("c", first.token)

    second = await tx.leases.acquire("c", "h2", NOW + 19, 10)
    assert second is not None
    assert second.token > first.token
    with pytest.raises(LeaseLostError):
        await tx.leases.check("c", first.token)
    with pytest.raises(LeaseLostError):
        await tx.leases.renew("c", first.token, NOW + 19, 10)
    assert not await tx.leases.release("c", first.token)
    await tx.leases.check("c", second.token)


async def test_released_is_free_and_void(tx: Tx) -> None:
    first = await tx.leases.acquire("c", "h1", NOW, 10)
    assert first is not None
    assert await tx.leases.release("c", first.token)
    with pytest.raises(LeaseLostError):
        await tx.leases.check("c", first.token)
    second = await tx.leases.acquire("c", "h2", NOW, 10)
    assert second is not None
    assert second.token > first.token


async def test_its_holder_gets_it_again_with_a_new_token(tx: Tx) -> None:
    first, second = [await tx.leases.acquire("c", "h1", NOW, 10) for _ in range(2)]
    assert first is not None
    assert second is not None
    assert second.token > first.token


async def test_no_lease_is_lost(tx: Tx) -> None:
    with pytest.raises(LeaseLostError):
        await tx.leases.check("none", 1)


async def test_many_want_it_one_gets_it(database: Database) -> None:
    async def acquire(number: int) -> bool:
        async with database.transaction() as tx:
            return await tx.leases.acquire("c", f"h{number}", NOW, 10) is not None

    assert (await asyncio.gather(*map(acquire, range(10)))).count(True) == 1


async def test_no_takeover_between_check_and_commit(database: Database) -> None:
    async with database.transaction() as tx:
        lease = await tx.leases.acquire("c", "h1", NOW, 10)
    assert lease is not None
    order = []

    async def take_over() -> None:
        async with database.transaction() as tx:
            await tx.leases.acquire("c", "h2", NOW + 20, 10)
            order.append("taken")

    async with database.transaction() as tx:
        await tx.leases.check("c", lease.token)
        task = asyncio.create_task(take_over())
        await two_accounts(tx)
        async with database.read() as reading:  # time in which the other would get through if it could
            await reading.accounts.count()
        order.append("written")
    await task
    assert order == ["written", "taken"]
    with pytest.raises(LeaseLostError):
        async with database.transaction() as tx:
            await tx.leases.check("c", lease.token)


async def test_settings(database: Database) -> None:
    async def get(value: bytes) -> bytes:
        async with database.transaction() as tx:
            return await tx.settings.get_or_create("pepper", value)

    got = await asyncio.gather(*(get(bytes([number])) for number in range(5)))
    assert len(set(got)) == 1
    async with database.read() as tx:
        assert await tx.settings.get("pepper") == got[0]
        assert await tx.settings.get("salt") is None


async def test_secrets(tx: Tx) -> None:
    await tx.secrets.put("acc_a", "hf", b"\x00one")
    await tx.secrets.put("acc_a", "hf", b"\x00two")
    assert await tx.secrets.get("acc_a", "hf") == b"\x00two"
    assert await tx.secrets.get("acc_b", "hf") is None
    assert not await tx.secrets.delete("acc_b", "hf")
    assert await tx.secrets.delete("acc_a", "hf")
    assert await tx.secrets.get("acc_a", "hf") is None
