"""A whole control process in a test: real database and artifact store, fake replicas, a clock that is set."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog
from cryptography.fernet import Fernet

from pillion.artifacts.store import ArtifactStore
from pillion.control import accounts, instances, keys
from pillion.control.agents import agents
from pillion.control.changes import Changes
from pillion.control.context import Control, Settings
from pillion.control.controller import Controller
from pillion.control.instances import Launch
from pillion.control.keys import Principal
from pillion.control.passwords import Passwords
from pillion.control.snapshots import Gateways, Publisher
from pillion.control.views import InstanceView
from pillion.core import snapshot as wire
from pillion.core.catalogue import Catalogue, CatalogueModel, GpuType, Pool, Region
from pillion.core.replica import LoraSpec
from pillion.core.tiers import Caps, Tier
from pillion.store.database import Database
from pillion.store.rows import Adapter
from tests import adapter_files
from tests.control.fakes import AgentServer, FakeFleet

DEADLINE_S = 20.0
CAPS: dict[Tier, Caps] = {
    "shared": Caps(20, 2_000_000, slots=1),
    "reserved": Caps(200, 2_000_000),
    "dedicated": Caps(200, 2_000_000),
}
T = TypeVar("T")
VAULT = Fernet.generate_key()


class Clock:
    """Stands still until a test sets it forward."""

    def __init__(self) -> None:
        self.began = time.time()
        self.ahead = 0.0

    def __call__(self) -> float:
        return self.began + self.ahead


class World:
    """What several controls share: a directory with database, store and models; regions; a clock."""

    def __init__(self, root: Path, regions: dict[str, FakeFleet], pools: tuple[Pool, ...] = ()) -> None:
        self.root = root
        self.url: str | None = None  # of another database than the usual one; its tables are there
        self.fleets = regions
        self.clock = Clock()
        self.base = root / "models" / "tiny"
        self.base.mkdir(parents=True, exist_ok=True)
        (self.base / "config.json").write_text(json.dumps(adapter_files.LLAMA))
        other = {**adapter_files.LLAMA, "hidden_size": 64}
        self.other = root / "models" / "other"
        self.other.mkdir(exist_ok=True)
        (self.other / "config.json").write_text(json.dumps(other))
        self.catalogue = Catalogue(
            regions=tuple(Region(name, gpus={"cpu": 4}) for name in regions),
            models=(
                CatalogueModel("tiny", f"path:{self.base}", engine="sim"),
                CatalogueModel("other", f"path:{self.other}", engine="sim"),
                CatalogueModel("plain", f"path:{self.base}", engine="sim", lora=False),
                CatalogueModel("embed", f"path:{self.base}", kind="embedding", engine="sim", lora=False),
            ),
            pools=pools,
            gpu_types=(GpuType("cpu"),),
        )
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def control(self, name: str = "one", *, run: bool = True) -> AsyncIterator[Control]:
        """A control process over the shared state; with `run` its controller runs."""
        async with AsyncExitStack() as stack:
            if self.url is None and not (self.root / "pillion.db").exists():
                (self.root / "pillion.db").write_bytes(await empty_database(self.root))
            db = Database.open(self.url or f"sqlite:///{self.root}/pillion.db")
            stack.push_async_callback(db.close)
            changes = Changes()
            made = Control(
                db=db,
                artifacts=ArtifactStore(f"file://{self.root}/artifacts"),
                catalogue=self.catalogue,
                settings=Settings(64, 30.0, self.root / "own", self.root / "work", CAPS),
                clock=self.clock,
                choice=secrets.choice,
                pepper=b"pepper",
                vault=Fernet(VAULT),
                changes=changes,
                agents=await stack.enter_async_context(agents(changes)),
                gateways=Gateways(self.clock),
                publisher=Publisher(b"pepper", self.clock),
                provisioners=dict(self.fleets),
                passwords=Passwords(1, 8, 1),  # a thousandth of the usual work
            )
            made.controller = Controller(made, name)
            if run:
                task = asyncio.create_task(made.controller.run())
                stack.push_async_callback(stopped, task)
            yield made

    # Short cuts for what a test begins with.

    async def account(self, control: Control, name: str = "mine", tier: Any = "dedicated") -> Principal:
        made = await accounts.create(control, name, tier)
        key = await keys.mint(control, made.id, name, ["inference", "manage"])
        return Principal(made.id, key.id, frozenset(key.scopes))

    async def adapter(self, control: Control, who: Principal, name: str = "mine", **changes: Any) -> Adapter:
        """A registered adapter with a live version, whose bytes are nowhere."""
        number, rank = next(self._numbers), changes.pop("rank", 4)
        source = changes.pop("source", {"test": True})
        async with control.db.transaction() as tx:
            row = await tx.adapters.create(
                who.account,
                f"adp_{number:020}",
                name=name,
                base_model=changes.pop("base", "tiny"),
                now=self.clock(),
                **changes,
            )
            await tx.versions.add(
                who.account,
                row.row_id,
                digest=hashlib.sha256(name.encode()).hexdigest(),
                rank=rank,
                alpha=8.0,
                target_modules=["q_proj"],
                size_bytes=100,
                source=source,
                now=self.clock(),
            )
            await tx.versions.went_live(who.account, row.row_id, 1, self.clock())
            live = await tx.adapters.set_live(who.account, row.row_id, 1)
        assert live is not None
        control.changes.notify()
        return live

    async def launched(self, control: Control, who: Principal, **changes: Any) -> InstanceView:
        """An instance that runs."""
        lora = changes.pop("lora", LoraSpec(True, max_adapters=changes.pop("slots", 3)))
        made = await instances.launch(
            control, who, Launch(changes.pop("model", "tiny"), lora=lora, **changes)
        )
        return await until(
            control, lambda: instances.get(control, who, made.id), lambda i: i.state == "running"
        )

    async def snapshot(self, control: Control) -> wire.Snapshot:
        """What a gateway would know after a poll now."""
        await control.controller.publish()
        data = await control.publisher.after(0, 0)
        assert data is not None
        return wire.decode(data)


_EMPTY: list[bytes] = []


async def empty_database(directory: Path) -> bytes:
    """A database file without rows, migrated once per test process."""
    if not _EMPTY:
        path = directory / "empty.db"
        db = Database.open(f"sqlite:///{path}")
        await db.migrate()
        await db.close()
        _EMPTY.append(path.read_bytes())
    return _EMPTY[0]


def log_plainly() -> None:
    """Tracebacks without the values of variables, which take seconds to print."""
    renderer = structlog.processors.KeyValueRenderer()
    structlog.configure([structlog.processors.add_log_level, structlog.processors.format_exc_info, renderer])


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(
    control: Control, look: Callable[[], Awaitable[T]], true: Callable[[T], object], what: str = ""
) -> T:
    """What `look` gives as soon as it is true, looked at after every tick of the controller."""
    found: Any = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                seen = control.controller.ticked.count
                found = await look()
                if true(found):
                    return found  # type: ignore[no-any-return]
                await control.controller.ticked.wait(seen, 0.5)
    except TimeoutError:
        raise AssertionError(f"not in {DEADLINE_S} s{what and ': ' + what}: {found}") from None


async def holds(control: Control, true: Callable[[], object], what: str = "") -> None:
    async def look() -> object:
        return true()

    await until(control, look, bool, what)


async def ticks(control: Control, count: int = 3) -> None:
    """Let the controller go round so many times."""
    for _ in range(count):
        seen = control.controller.ticked.count
        control.changes.notify()
        await control.controller.ticked.wait(seen, DEADLINE_S)


def fleets(server: AgentServer, url: str, *regions: str) -> dict[str, FakeFleet]:
    made = {region: FakeFleet(region, url) for region in regions}
    server.fleets += made.values()
    return made
