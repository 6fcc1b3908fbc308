"""Members, invites, logins: each account's own."""

from __future__ import annotations

import pytest

from pillion.core.errors import NameTakenError
from pillion.store.rows import Member
from pillion.store.transaction import Tx
from tests.store.conftest import NOW


async def member(tx: Tx, account: str = "acc_a", number: int = 1, role: str = "owner") -> Member:
    return await tx.members.create(
        account,
        f"mem_{account[-1]}{number}",
        email=f"{number}@example.com",
        name=f"n{number}",
        role=role,  # type: ignore[arg-type]
        now=NOW + number,
        subject=f"s{number}",
    )


async def test_members(tx: Tx) -> None:
    one, two, other = await member(tx), await member(tx, number=2, role="member"), await member(tx, "acc_b")
    assert await tx.members.list("acc_a") == [one, two]
    assert await tx.members.get("acc_a", "mem_b1") is None
    assert await tx.members.by_email("acc_a", "2@example.com") == two
    assert await tx.members.owners("acc_a") == 1
    with pytest.raises(NameTakenError, match="member of this account already"):
        await tx.members.create("acc_a", "mem_x", email=one.email, name="x", role="owner", now=NOW)
    changed = await tx.members.update("acc_a", two.id, role="owner")
    assert changed is not None
    assert await tx.members.owners("acc_a") == 2
    assert await tx.members.update("acc_a", other.id, role="member") is None
    assert not await tx.members.delete("acc_a", other.id)
    assert await tx.members.delete("acc_a", one.id)
    assert await tx.everyone.members_by_email("1@example.com", 9) == [other]


async def test_people_are_found_over_accounts_that_are_not_suspended(tx: Tx) -> None:
    one, other = await member(tx), await member(tx, "acc_b")
    assert await tx.everyone.members_by_email("1@example.com", 9) == [one, other]
    assert await tx.everyone.members_by_subject("s1", 1) == [one]
    assert await tx.everyone.members_by_email("1@example.com", 1, "acc_b") == [other]
    assert await tx.everyone.members_by_subject("s1", 1, "acc_b") == [other]
    await tx.accounts.update("acc_a", suspended_at=NOW)
    assert await tx.everyone.members_by_email("1@example.com", 9) == [other]


async def test_an_invite_is_accepted_once(tx: Tx) -> None:
    fields = {"email": "e@x", "role": "member", "by": "key_1", "now": NOW, "expires_at": NOW + 9}
    one = await tx.invites.create("acc_a", "inv_1", digest="d1", **fields)  # type: ignore[arg-type]
    two = await tx.invites.create("acc_a", "inv_2", digest="d2", **fields)  # type: ignore[arg-type]
    assert await tx.invites.list("acc_a") == [one, two]
    assert await tx.everyone.invite_by_digest("d1") == one
    assert not await tx.invites.accept("acc_b", "inv_1", NOW)
    assert await tx.invites.accept("acc_a", "inv_1", NOW)
    assert not await tx.invites.accept("acc_a", "inv_1", NOW)
    assert not await tx.invites.delete("acc_a", "inv_1")
    assert not await tx.invites.delete("acc_b", "inv_2")
    assert await tx.invites.delete("acc_a", "inv_2")
    assert await tx.invites.list("acc_a") == []


async def test_logins_of_members_and_of_keys(tx: Tx) -> None:
    one = await member(tx)
    key = await tx.keys.create(
        "acc_a", "key_1", lookup="L", digest="d", name="k", scopes=["manage"], now=NOW, by=one.id
    )
    await tx.logins.create("acc_a", "d1", now=NOW, expires_at=NOW + 1, member=one.id)
    await tx.logins.create("acc_a", "d2", now=NOW, expires_at=NOW + 2, key=key.id)
    by_password, by_key = await tx.everyone.logged_in("d1"), await tx.everyone.logged_in("d2")
    assert by_password is not None
    assert by_key is not None
    assert (by_password.member, by_password.key, by_password.suspended) == (one, None, False)
    assert by_key.key is not None
    assert (by_key.key.key, by_key.key.role) == (key, "owner")
    await tx.accounts.update("acc_a", suspended_at=NOW)
    suspended = await tx.everyone.logged_in("d2")
    assert suspended is not None
    assert suspended.suspended
    assert not await tx.logins.end("acc_b", "d1")
    await tx.everyone.forget_logins(NOW + 1)
    assert await tx.everyone.logged_in("d1") is None
    assert await tx.logins.end("acc_a", "d2")


async def test_who_goes_takes_logins_along_and_leaves_no_keys(tx: Tx) -> None:
    one = await member(tx)
    for number, by in ((1, one.id), (2, None), (3, one.id)):
        await tx.keys.create(
            "acc_a", f"key_{number}", lookup=f"L{number}", digest="d", name="", scopes=[], now=NOW, by=by
        )
    await tx.keys.revoke("acc_a", "key_3", NOW)
    await tx.logins.create("acc_a", "d1", now=NOW, expires_at=NOW + 1, member=one.id)
    await tx.logins.create("acc_a", "d2", now=NOW, expires_at=NOW + 1, member=one.id)
    await tx.logins.end_all("acc_a", member=one.id, but="d2")
    assert await tx.everyone.logged_in("d1") is None
    assert await tx.everyone.logged_in("d2") is not None
    assert await tx.keys.revoke_all("acc_b", NOW, by=one.id) == ()
    assert await tx.keys.revoke_all("acc_a", NOW, by=one.id) == ("key_1",)
    await tx.members.delete("acc_a", one.id)
    assert await tx.everyone.logged_in("d2") is None
    assert [key.id for key in await tx.everyone.active_keys()] == ["key_2"]
    assert await tx.keys.revoke_all("acc_a", NOW) == ("key_2",)
