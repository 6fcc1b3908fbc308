"""Accounts and their keys."""

from __future__ import annotations

from typing import Any

import pytest

from pillion.core.errors import NameTakenError, NotFoundError
from pillion.store.rows import Account, Caller
from pillion.store.transaction import Tx
from tests.store.conftest import NOW


async def test_accounts(tx: Tx) -> None:
    b = Account("acc_b", "b", "reserved", True, NOW)
    assert await tx.accounts.get("acc_b") == b == await tx.accounts.by_name("b")
    assert await tx.accounts.get("acc_x") is None
    assert [account.id for account in await tx.accounts.list()] == ["acc_a", "acc_b"]
    assert await tx.accounts.list(after="a") == [b]
    assert len(await tx.accounts.list(limit=1)) == 1
    assert await tx.accounts.count() == 2


async def test_an_account_name_is_taken_once(tx: Tx) -> None:
    with pytest.raises(NameTakenError, match="an account named 'a' already"):
        await tx.accounts.create("acc_c", name="a", now=NOW)
    assert await tx.accounts.count() == 2


async def test_accounts_change(tx: Tx) -> None:
    changed = await tx.accounts.update("acc_a", tier="dedicated", local_only=True, suspended_at=NOW)
    assert (changed.tier, changed.local_only, changed.suspended_at) == ("dedicated", True, NOW)
    assert await tx.everyone.suspended_accounts() == {"acc_a"}
    with pytest.raises(NameTakenError, match="named 'b' already"):
        await tx.accounts.update("acc_a", name="b")
    with pytest.raises(NotFoundError):
        await tx.accounts.update("acc_x", tier="shared")
    await tx.accounts.update("acc_a", name="a~", deleted_at=NOW)
    assert [account.id for account in await tx.accounts.list()] == ["acc_b"]
    await tx.accounts.create("acc_c", name="a", now=NOW)


async def test_locking_no_account(tx: Tx) -> None:
    assert (await tx.accounts.lock("acc_a")).id == "acc_a"
    with pytest.raises(NotFoundError):
        await tx.accounts.lock("acc_x")


async def test_keys(tx: Tx) -> None:
    fields: dict[str, Any] = {"digest": "d", "name": "n", "scopes": ("inference", "manage"), "now": NOW}
    one = await tx.keys.create("acc_a", "key_1", lookup="L1", **fields)
    two = await tx.keys.create("acc_b", "key_2", lookup="L2", **fields)
    assert one.scopes == ["inference", "manage"]
    assert await tx.keys.list("acc_a") == [one]
    assert await tx.keys.get("acc_a", "key_2") is None
    assert await tx.everyone.caller_by_lookup("L2") == Caller(two, suspended=False, role=None)
    assert await tx.everyone.caller_by_lookup("L3") is None

    assert not await tx.keys.revoke("acc_a", "key_2", NOW)
    assert await tx.keys.revoke("acc_b", "key_2", NOW + 1)
    assert not await tx.keys.revoke("acc_b", "key_2", NOW + 2)
    revoked = await tx.keys.get("acc_b", "key_2")
    assert revoked is not None
    assert revoked.revoked_at == NOW + 1
    assert await tx.everyone.active_keys() == [one]
