"""Nodes of a region in this process: real agents, and simulated engines behind the real gate, which can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import shutil
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from pillion.agent.agent import Agent, Parts
from pillion.agent.home import EngineRecord, Home
from pillion.agent.supervisor import Timing
from pillion.artifacts.fetch import fetch
from pillion.core.adapters.digest import version_digest
from pillion.core.replica import GroupSpec, Replica, ReplicaSpec
from pillion.engines.driver import Launch, driver, options, slots
from pillion.engines.plugin.pillion_engine.gate import Gate
from pillion.engines.plugin.pillion_engine.port import EngineRefused
from pillion.engines.sim.adapters import SimAdapters
from pillion.engines.sim.http import SimApp
from pillion.engines.sim.settings import Faults, SimConfig, SimOptions
from pillion.fleet import directory, local
from pillion.fleet.directory import ReplicaDirectory
from pillion.fleet.local import LocalProvisioner
from tests.chaos.served import Served

# An engine that lived at all is started again at once; one that hangs is found out in half a second.
TIMING = Timing(
    poll_s=0.02,
    probe_s=0.1,
    probe_timeout_s=0.4,
    misses=2,
    stop_grace_s=0.2,
    steady_s=0.0,
    start_timeout_s=20.0,
)


@dataclass
class Seen:
    """What was found wrong inside engines, and how much was done there."""

    wrong: list[str] = field(default_factory=list)
    loads: int = 0
    most: int = 0


class WatchedAdapters(SimAdapters):
    """Says it when an engine is over its cap, or is given other bytes than those of the name."""

    def __init__(self, config: SimConfig, faults: Callable[[], Faults], seen: Seen, where: str) -> None:
        super().__init__(config, faults)
        self._seen, self._where, self._most = seen, where, config.slots

    async def add(self, name: str, path: str) -> None:
        files = Path(path)
        weights = hashlib.sha256((files / "adapter_model.safetensors").read_bytes()).hexdigest()
        digest = version_digest(weights, (files / "adapter_config.json").read_bytes())
        if digest != name.partition("@")[2]:
            self._seen.wrong.append(f"{self._where} was given bytes of {digest[:12]} for {name}")
        try:
            await super().add(name, path)
        except EngineRefused as refused:
            if "slots are taken" in str(refused):
                self._seen.wrong.append(f"{self._where} was asked for more than it has room for: {name}")
            raise
        self._seen.loads += 1
        self._seen.most = max(self._seen.most, len(self._voices))
        if len(self._voices) > self._most:
            self._seen.wrong.append(f"{self._where} holds {len(self._voices)} of {self._most}")


class Engine:
    """A simulated engine that runs; to its agent a process (`agent.processes.Process`)."""

    def __init__(self, record: EngineRecord, spec: ReplicaSpec, seen: Seen) -> None:
        self.record, self.spec = record, spec
        group = spec.group
        config = SimConfig(
            base=group.model.name,
            model_dir=group.model.source.removeprefix("path:"),
            infer_key=spec.infer_key,
            agent_key=spec.engine_key,
            slots=slots(spec),
            max_rank=group.lora.max_rank,
            options=options(group.engine_options, SimOptions, "sim"),
        )
        self.app = SimApp(config, lambda: uuid.uuid4().hex, self.kill)
        self.app.adapters = WatchedAdapters(config, lambda: self.app.faults, seen, spec.id)
        self.gate = Gate(
            self.app,
            self.app.adapters,
            infer_key=config.infer_key,
            agent_key=config.agent_key,
            base_names=[config.base],
            slots=config.slots,
        )
        self._agents: set[Any] = set()
        self.shut_out: Counter[str] = Counter()
        self.killed = False
        self._served = Served(self._answer, record.port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.record.port}"

    @property
    def exit_status(self) -> int | None:
        return -9 if self.killed else None

    @property
    def well(self) -> bool:
        """Whether gateways get answers."""
        return not self.killed and self._served.open and not self.app.faults.hang

    def alive(self) -> bool:
        return not self.killed

    def holds(self, name: str) -> bool:
        """Whether it would answer with this, an adapter or the base, to a gateway."""
        roster = self.gate._roster
        entry = roster.bases.get(name) or roster.adapters.get(name)
        return entry is not None and entry.open and not entry.leaving

    async def resident(self) -> set[str]:
        return await self.app.adapters.resident()

    async def end(self, grace_s: float) -> None:
        self.kill()

    def kill(self) -> None:
        self.killed = True
        self._served.kill()

    def cut(self) -> None:
        """No gateway reaches it; its agent, which is beside it, does over the connections that it has."""
        self._served.cut(spare=self._agents.__contains__)

    def restore(self) -> None:
        if not self.killed:
            self._served.restore()

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        authorization = dict(scope.get("headers", ())).get(b"authorization", b"")
        if authorization == f"Bearer {self.spec.engine_key}".encode():
            self._agents.add(scope["client"])
        name, _, verb = scope.get("path", "").removeprefix("/pillion/v1/adapters/").partition("/")
        if scope.get("method") == "DELETE" or verb == "close":
            self.shut_out[name] += 1
        await self.gate(scope, receive, send)


class MortalAgent(Agent):
    """One whose HTTP can be cut off."""

    runner: web.AppRunner | None = None
    away = False
    _address: tuple[str, int] = ("", 0)

    async def _listen(self) -> web.AppRunner:
        runner = await super()._listen()
        self.runner, self._address = runner, runner.addresses[0]
        if self.away:
            await self.cut()
        return runner

    async def cut(self) -> None:
        """Nobody reaches it any more."""
        self.away = True
        for site in self.runner.sites if self.runner is not None else ():
            await site.stop()
        self.abort()

    async def restore(self) -> None:
        self.away = False
        if self.runner is not None and self.runner.server is not None and not self.runner.sites:
            await web.TCPSite(self.runner, *self._address).start()

    def abort(self) -> None:
        server = self.runner.server if self.runner is not None else None
        for connection in server.connections if server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()  # type: ignore[attr-defined]


class Life:
    """One life of an agent. It holds the directory's lock while it lives, as a process would."""

    def __init__(self, node: Node, home: Home, spec: ReplicaSpec) -> None:
        self._node, self._home, self._spec = node, home, spec
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(home.lock())
        self.agent: MortalAgent | None = None
        self.task = asyncio.get_running_loop().create_task(self._run())
        self.task.add_done_callback(self._over)
        self.dead = False

    def kill(self) -> None:
        """As SIGKILL would; its engine lives on."""
        if self.agent is not None:
            self.agent.abort()
            self.agent.board.post(detail="killed")  # those who wait to hear of it are gone
        self.task.cancel()
        self._let_go()

    async def _run(self) -> None:
        home, spec, node = self._home, self._spec, self._node
        if home.is_ending():
            engine = node.adopt(home)
            if engine is not None:
                engine.kill()
            home.remove("engine.json")
            return
        parts = Parts(
            driver=driver("sim"),
            launch=lambda port: Launch((), {}),
            fetch=lambda digest: fetch(spec.artifacts, digest, Path(spec.cache_dir)),
            epoch=uuid.uuid4().hex,
            now=node.clock,
            random=random.random,
            timing=TIMING,
            first_backoff_s=0.05,
            processes=node,
        )
        self.agent = MortalAgent(home, spec, parts)
        self.agent.away = node.away
        await self.agent.run()

    def _over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._node.seen.wrong.append(f"the agent of {self._spec.id} ended: {task.exception()!r}")
        self._let_go()

    def _let_go(self) -> None:
        if not self.dead:
            self.dead = True
            self._lock.close()


class Directory(ReplicaDirectory):
    """Its agents live in this process."""

    node: Node

    def start(self) -> None:
        self.node.begin(Home(self.path), self.spec)

    def _kill(self) -> None:
        self.node.kill_agent(self.spec.id)


class Node(LocalProvisioner):
    """One region's machine. `clock` is that of its agents; `away`: nobody hears of it, and it goes on by itself."""

    def __init__(
        self, root: Path, region: str, artifacts: str, clock: Callable[[], float], seen: Seen
    ) -> None:
        super().__init__(root / region, region, artifacts, (), drain_s=0.2)
        self.region, self.clock, self.seen = region, clock, seen
        self.away = False
        self.lives: dict[str, Life] = {}
        self.engines: dict[str, Engine] = {}
        self._old: list[Life] = []
        self._numbers = itertools.count(1)

    @property
    def cache(self) -> Path:
        return self._cache

    # To the agents it is where engines run.

    def start(self, launch: Launch, home: Home, port: int, epoch: int) -> Engine:
        record = EngineRecord(next(self._numbers), f"{self.region}-{uuid.uuid4().hex}", port, epoch)
        engine = Engine(record, home.spec(), self.seen)
        self.engines[engine.spec.id] = engine
        if self.away:
            engine.cut()
        home.write("engine.json", record)
        return engine

    def adopt(self, home: Home) -> Engine | None:
        record, engine = home.read("engine.json", EngineRecord), self.engines.get(home.directory.name)
        same = record is not None and engine is not None and engine.record.identity == record.identity
        return engine if same and engine is not None and engine.alive() else None

    # To control it is a region.

    async def apply(self, group: GroupSpec) -> None:
        self._answer()
        await super().apply(group)

    async def delete(self, instance: int, region: str) -> None:
        self._answer()
        await super().delete(instance, region)

    async def observe(self) -> list[Replica]:
        self._answer()
        return await super().observe()

    async def _all(self) -> list[ReplicaDirectory]:
        found = await super()._all()
        for each in found:
            each.node = self  # type: ignore[attr-defined]
        return found

    def _create(self, group: GroupSpec) -> ReplicaDirectory:
        made = super()._create(group)
        made.node = self  # type: ignore[attr-defined]
        return made

    def _answer(self) -> None:
        if self.away:
            raise RuntimeError(f"the region {self.region} does not answer")

    # What happens there.

    def begin(self, home: Home, spec: ReplicaSpec) -> None:
        life = self.lives.get(spec.id)
        if life is not None and not life.dead:
            return
        if life is not None:
            self._old.append(life)
        self.lives[spec.id] = Life(self, home, spec)

    def kill_agent(self, replica: str) -> None:
        life = self.lives.get(replica)
        if life is not None and not life.dead:
            life.kill()

    def kill_engine(self, replica: str) -> None:
        engine = self.engines.get(replica)
        if engine is not None:
            engine.kill()

    async def go_away(self) -> None:
        self.away = True
        for engine in self.engines.values():
            engine.cut()
        for agent in self._agents():
            await agent.cut()

    async def come_back(self) -> None:
        self.away = False
        for engine in self.engines.values():
            engine.restore()
        for agent in self._agents():
            await agent.restore()

    def _agents(self) -> list[MortalAgent]:
        return [life.agent for life in self.lives.values() if life.agent is not None and not life.dead]

    def lose_cache(self) -> None:
        shutil.rmtree(self._cache, ignore_errors=True)

    def spoil_cache(self) -> None:
        """Every copy is damaged, its size the same."""
        for weights in self._cache.glob("*/adapter_model.safetensors"):
            data = bytearray(weights.read_bytes())
            data[-1] ^= 1
            weights.chmod(0o644)
            weights.write_bytes(data)

    def well(self) -> list[Engine]:
        """Engines that gateways get answers from."""
        return [engine for engine in self.engines.values() if engine.well]

    def forget(self) -> None:
        """What is no more."""
        self.lives = {id: life for id, life in self.lives.items() if (self._root / id).exists()}
        self.engines = {id: engine for id, engine in self.engines.items() if id in self.lives}
        self._old = [life for life in self._old if not life.task.done()]

    async def end(self) -> None:
        for id in self.lives:
            self.kill_agent(id)
        await asyncio.gather(
            *(life.task for life in [*self._old, *self.lives.values()]), return_exceptions=True
        )
        for ending in list(self._endings.values()):
            ending.cancel()
        await asyncio.gather(*self._endings.values(), return_exceptions=True)
        for engine in self.engines.values():
            engine.kill()


@contextlib.asynccontextmanager
async def in_this_process() -> AsyncIterator[None]:
    """Replicas' directories start their agents here."""
    before = directory.ReplicaDirectory
    directory.ReplicaDirectory = local.ReplicaDirectory = Directory  # type: ignore[misc]
    try:
        yield
    finally:
        directory.ReplicaDirectory = local.ReplicaDirectory = before  # type: ignore[misc]
