"""What the operator's configuration may not say beside what accounts already have."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pillion.control import adapters, models
from pillion.control.context import Control
from pillion.core.catalogue import CatalogueModel
from pillion.core.errors import NameTakenError
from tests.control.world import World


async def begin(control: Control, name: str) -> None:
    """As at a start with one more model."""
    before = control.catalogue
    control.catalogue = replace(before, models=(*before.models, CatalogueModel(name, "hf:a/b")))
    try:
        await models.check_catalogue(control)
    finally:
        control.catalogue = before


async def test_a_new_model_does_not_take_a_name_that_an_account_has(world: World) -> None:
    async with world.control(run=False) as control:
        who, other = await world.account(control), await world.account(control, "other")
        adapter = await world.adapter(control, who, "first", label="once")
        await adapters.rename(control, who, adapter.id, "now")
        await models.register(control, other, "theirs", "hf:a/b", "chat", True, None)
        for name in ("first", "once", "now", "theirs"):
            owner = other.account if name == "theirs" else who.account
            with pytest.raises(NameTakenError, match=f"'{name}' .of {owner}"):
                await begin(control, name)
        await begin(control, "another")
        await adapters.delete(control, who, adapter.id, force=False)
        await begin(control, "once")
