from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pillion.core.snapshot import Adapter, Instance, Key, Model
from tests.gateway.site import Control, Engine, Site, fleet, listening, site
from tests.gateway.world import make_adapter, make_instance, make_key, make_replica, make_snapshot


@dataclass
class Town:
    """A gateway, two replicas `a` and `b` of instance 1 that both hold adapter 1, and a key of ACME's."""

    site: Site
    control: Control
    a: Engine
    b: Engine
    adapter: Adapter
    key: str
    entry: tuple[str, Key]

    def instance(
        self, *engines: Engine, number: int = 1, resident: bool = True, **fields: object
    ) -> Instance:
        held = (self.adapter,) if resident else ()
        names = {id(self.a): "a", id(self.b): "b"}
        replicas = (make_replica(names.get(id(e), "c"), *held, url=e.url) for e in engines)
        return make_instance(number, *replicas, **fields)  # type: ignore[arg-type]

    async def publish(self, *parts: Adapter | Instance | Model | tuple[str, Key]) -> None:
        """A new snapshot with just these, applied by the gateway."""
        assert self.control.snapshot is not None
        await self.control.publish(make_snapshot(*parts, version=self.control.snapshot.version + 1))

    async def only(self, *engines: Engine, **fields: object) -> None:
        """Instance 1 has just these replicas."""
        await self.publish(self.entry, self.adapter, self.instance(*engines, **fields))  # type: ignore[arg-type]


@pytest.fixture
async def control() -> AsyncIterator[Control]:
    made = Control()
    async with listening(made.handle) as url:
        made.url = url
        yield made


@pytest.fixture
async def town(tmp_path: Path, control: Control) -> AsyncIterator[Town]:
    text, entry = make_key()
    async with fleet(2) as (a, b), site(tmp_path / "gateway", control) as running:
        made = Town(running, control, a, b, make_adapter(1, version=3), text, entry)
        await control.publish(make_snapshot(entry, made.adapter, made.instance(a, b)))
        yield made
