"""Gateways join by a token that is good once; what they show from then on is theirs, and is taken from them at once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from pillion.control import joining
from pillion.control.context import Control
from pillion.control.joining import VALID_S, Door
from pillion.control.keys import Principal
from pillion.core.errors import NotFoundError, UnavailableError
from tests.control.world import World

OWN, OTHER = "pgw_" + "a" * 40, "pgw_" + "b" * 40


@pytest.fixture
async def control(world: World) -> AsyncIterator[Control]:
    async with world.control(run=False) as made:
        yield made


@pytest.fixture
def door(control: Control) -> Door:
    return Door(control, "local")


async def token(control: Control, who: Principal) -> str:
    made = (await joining.invite(control, who, "eu-1")).token
    assert made is not None
    return made


async def test_a_token_is_good_once(control: Control, door: Door, who: Principal) -> None:
    bought = await token(control, who)
    assert not await door.admits(OWN)
    assert await door.join(bought, OWN)
    assert not await door.join(bought, OTHER)
    assert [await door.admits(shown) for shown in (OWN, OTHER, bought, "local", "")] == [
        True, False, False, True, False,
    ]  # fmt: skip
    assert await Door(control, "another control's").admits(OWN)


async def test_who_heard_no_answer_asks_again_however_late(
    control: Control, door: Door, who: Principal, world: World
) -> None:
    bought = await token(control, who)
    assert await door.join(bought, OWN)
    world.clock.ahead += VALID_S + 1
    assert await door.join(bought, OWN)
    (row,) = (await joining.listing(control)).data
    assert (row.name, row.token) == ("eu-1", None)
    assert row.joined_at is not None
    assert row.joined_at < row.expires_at


async def test_a_token_that_is_over_unknown_or_revoked(
    control: Control, door: Door, who: Principal, world: World
) -> None:
    made = await joining.invite(control, who, "")
    assert made.token is not None
    await joining.revoke(control, who, made.id)
    old = await token(control, who)
    world.clock.ahead += VALID_S
    for bought in (made.token, old, "pgj_x", ""):
        assert not await door.join(bought, OWN)
    assert not await door.admits(OWN)


async def test_revoked_it_is_out_at_once_and_comes_back_by_another_token(
    control: Control, door: Door, who: Principal
) -> None:
    made = await joining.invite(control, who, "")
    assert made.token is not None
    assert await door.join(made.token, OWN)
    await joining.revoke(control, who, made.id)
    with pytest.raises(NotFoundError):
        await joining.revoke(control, who, made.id)
    assert not await door.admits(OWN)
    assert not await door.join(made.token, OWN)
    assert await door.join(await token(control, who), OWN)
    assert await door.admits(OWN)


async def test_the_database_away_who_was_known_is_known(
    control: Control, door: Door, who: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shown in (OWN, OTHER):
        assert await door.join(await token(control, who), shown)
    assert await door.admits(OWN)

    def away() -> None:
        raise UnavailableError("the database is away")

    monkeypatch.setattr(control.db, "read", away)
    assert [await door.admits(shown) for shown in (OWN, OTHER, "local")] == [True, False, True]


async def test_only_digests_are_kept(control: Control, door: Door, who: Principal) -> None:
    bought = await token(control, who)
    await door.join(bought, OWN)
    async with control.db.read() as tx:
        (row,) = await tx.gateways.list()
    assert bought not in repr(row)
    assert OWN not in repr(row)
