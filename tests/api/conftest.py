from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog

from tests.api.site import Site
from tests.api.site import site as made_site
from tests.control.fakes import agent_server
from tests.control.world import World, fleets, log_plainly
from tests.store.scope import refuse_unscoped


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    """Every statement keeps to one account, or says that it does not."""
    sa.event.listen(sa.Engine, "before_execute", refuse_unscoped)
    yield
    sa.event.remove(sa.Engine, "before_execute", refuse_unscoped)


@pytest.fixture(autouse=True, scope="session")
def plain_log() -> Iterator[None]:
    log_plainly()
    yield
    structlog.reset_defaults()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with agent_server() as served:
        yield World(tmp_path, fleets(*served, "local", "far"))


@pytest.fixture
async def site(world: World) -> AsyncIterator[Site]:
    async with made_site(world) as made:
        yield made
