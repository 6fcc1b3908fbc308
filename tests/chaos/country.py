"""What lives of control share in the walk: a catalogue, regions of real agents, and a time that may be set forward."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from pillion.control.context import Control
from pillion.control.snapshots import Gateways, Publisher
from pillion.core.adapters.digest import version_digest
from pillion.core.catalogue import Catalogue, CatalogueModel, GpuType, Pool, Region
from tests.chaos.nodes import Node
from tests.control.world import World

BASE = "tiny"
SLOTS = 2
OPTIONS = {"tokens_per_s": 200.0, "load_ms_per_mb": 300.0}


class RunningClock:
    """Seconds since the epoch, which a test may set forward. `skewed`: the same by another's clock."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.skew: dict[str, float] = {}

    def __call__(self) -> float:
        return time.time() + self.ahead

    def of(self, who: str) -> Callable[[], float]:
        return lambda: self() + self.skew.get(who, 0.0)


class Country(World):
    """Its regions' replicas are real agents and simulated engines."""

    def __init__(self, root: Path, nodes: dict[str, Node], clock: RunningClock) -> None:
        super().__init__(root, nodes)  # type: ignore[arg-type]
        self.clock = clock  # type: ignore[assignment]
        self.catalogue = Catalogue(
            regions=tuple(Region(name, gpus={"cpu": 100}) for name in nodes),
            models=(CatalogueModel(BASE, f"path:{self.base}", engine="sim", options=OPTIONS),),
            pools=(Pool(BASE, replicas=3, max_adapters=SLOTS),),
            gpu_types=(GpuType("cpu"),),
        )

    @asynccontextmanager
    async def control(self, name: str = "one", *, run: bool = True) -> AsyncIterator[Control]:
        self.clock.skew.setdefault("control", 0.0)
        async with super().control(name, run=run) as made:
            made.clock = self.clock.of("control")
            made.publisher = Publisher(made.pepper, made.clock, uuid.uuid4().hex)
            made.gateways = Gateways(time.monotonic)  # whose long polls take what they take
            yield made


def stored(artifacts: Path, adapter: bytes, config: bytes) -> str:
    """Puts an adapter's files where the store keeps them; their digest."""
    digest = version_digest(hashlib.sha256(adapter).hexdigest(), config)
    files = artifacts / "adapters" / digest[:2] / digest
    files.mkdir(parents=True, exist_ok=True)
    (files / "adapter_model.safetensors").write_bytes(adapter)
    (files / "adapter_config.json").write_bytes(config)
    return digest
