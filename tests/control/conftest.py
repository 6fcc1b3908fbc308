from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog

from pillion.control.context import Control
from pillion.control.keys import Principal
from tests.control.fakes import AgentServer, FakeFleet, agent_server
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
async def server() -> AsyncIterator[tuple[AgentServer, str]]:
    async with agent_server() as served:
        yield served


@pytest.fixture
def world(server: tuple[AgentServer, str], tmp_path: Path) -> World:
    return World(tmp_path, fleets(*server, "local"))


@pytest.fixture
def fleet(world: World) -> FakeFleet:
    return world.fleets["local"]


@pytest.fixture
async def control(world: World) -> AsyncIterator[Control]:
    async with world.control() as made:
        yield made


@pytest.fixture
async def who(world: World, control: Control) -> Principal:
    return await world.account(control)
