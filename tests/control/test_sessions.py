"""Ending a session ends its loads, and nothing else."""

from __future__ import annotations

import pytest

from pillion.control import adapters, attachments, loads, sessions
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.loads import Load
from pillion.core.errors import NotFoundError
from tests.control.test_controller import in_state, row
from tests.control.world import World


async def test_its_loads_end_pins_too_and_others_stay(world: World, control: Control, who: Principal) -> None:
    made = await world.launched(control, who, slots=4)
    one, two, three = [await world.adapter(control, who, name) for name in ("one", "two", "three")]
    await loads.load(control, who, one.id, Load(session_key="s/1", pin=True))
    await loads.load(control, who, two.id, Load(session_key="s/2"))
    await attachments.attach(control, who, made.id, three.id)
    page, done = await sessions.end(control, who, "s/1")
    assert ([view.adapter for view in page.data], done) == (["one"], True)
    assert await row(control, who, one, made.id) is None
    await in_state(control, who, two, made.id, "ready")
    await in_state(control, who, three, made.id, "ready")
    assert (await adapters.get(control, who, one.id)).attachments == []


async def test_what_was_generated_in_it_is_deleted(world: World, control: Control, who: Principal) -> None:
    await world.launched(control, who)
    made = await world.adapter(control, who, "page", source={"internalize": {}})
    await loads.load(control, who, made.id, Load(session_key="s"))
    await sessions.end(control, who, "s")
    with pytest.raises(NotFoundError):
        await adapters.get(control, who, made.id)


async def test_an_unknown_session_and_anothers(world: World, control: Control, who: Principal) -> None:
    await world.launched(control, who)
    adapter = await world.adapter(control, who)
    await loads.load(control, who, adapter.id, Load(session_key="mine"))
    stranger = await world.account(control, "stranger")
    for caller, key in ((who, "other"), (stranger, "mine")):
        with pytest.raises(NotFoundError):
            await sessions.end(control, caller, key)
