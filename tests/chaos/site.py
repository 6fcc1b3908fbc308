"""All of Pillion in one process: control, a gateway, and in three regions agents and simulated engines; and clients.

What clients get is judged by what engines hold, what gateways know and what the database says.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from safetensors.numpy import save

from pillion.api import internal
from pillion.control import controller, keys, pools
from pillion.core.routing import Route
from pillion.gateway import feed
from pillion.store.database import Database
from pillion.store.rows import Adapter, SnapshotRows
from tests import adapter_files
from tests.chaos import settled
from tests.chaos.country import BASE, Country, RunningClock, stored
from tests.chaos.gateway import TOKEN, Answer, Asked, RunningGateway, plain, versions_of
from tests.chaos.lives import REGIONS, Crash, Lives
from tests.chaos.nodes import Engine, Node, Seen, in_this_process
from tests.chaos.served import Served
from tests.control.world import World

SLOW = 6  # tokens of an answer that is under way while something happens
SKEW_S = 1.0


class Site(Lives):
    def __init__(self) -> None:
        self.clock, self.seen = RunningClock(), Seen()
        self.nodes: dict[str, Node] = {}
        self.keys: list[str] = []
        self.digests: dict[tuple[str, int], str] = {}
        self.expired: dict[str, float] = {}
        self.flying: list[tuple[int, str]] = []
        self.kept: set[tuple[str, int]] = set()  # attached, acknowledged, and nothing said against it since
        self.counts: Counter[str] = Counter()
        self.control_is_up = False
        self._numbers = self._numbers_asked = 0
        self._before = controller.SETTLING_S, feed.MAX_PAUSE_S
        controller.SETTLING_S, feed.MAX_PAUSE_S = 0.3, 0.1
        super().__init__()

    def close(self) -> None:
        try:
            super().close()
        finally:
            controller.SETTLING_S, feed.MAX_PAUSE_S = self._before

    async def _found(self) -> World:
        await self._stack.enter_async_context(in_this_process())
        self.artifacts = self.root / "artifacts"
        for region in REGIONS:
            url = f"file://{self.artifacts}"
            self.nodes[region] = Node(self.root / "nodes", region, url, self.clock.of(region), self.seen)
            self._stack.push_async_callback(self.nodes[region].end)
        self.internal = Served(self._to_control)
        self._stack.callback(self.internal.kill)
        return Country(self.root, self.nodes, self.clock)

    async def _begin(self) -> None:
        await super()._begin()
        for who in self.accounts:
            made = await keys.mint(self.control, who.account, "traffic", ["inference"])
            assert made.key is not None
            self.keys.append(made.key)
        self.books = Database.open(f"sqlite:///{self.root}/pillion.db")
        self._stack.push_async_callback(self.books.close)
        url = f"http://127.0.0.1:{self.internal.port}"
        self.gateway = RunningGateway(self.root / "gateway", url, self.clock.of("gateway"))
        await self.gateway.begin()
        self._stack.push_async_callback(self.gateway.close)

    # Control and its internal listener live and die together.

    def _beside(self) -> Mapping[str, AbstractAsyncContextManager[Any]]:
        return {"internal": self._listening(), "pools": self._pools()}

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        self._internal_app = internal.build(self.control, TOKEN)
        self.internal.restore()
        self.control_is_up = True
        try:
            yield
        finally:
            self.control_is_up = False
            self.internal.kill()

    @asynccontextmanager
    async def _pools(self) -> AsyncIterator[None]:
        await pools.ensure(self.control)
        yield

    async def _to_control(self, scope: Any, receive: Any, send: Any) -> None:
        await self._internal_app(scope, receive, send)

    def _die(self) -> None:
        super()._die()
        self.control_is_up = False
        self.internal.kill()

    def stop_control(self) -> None:
        """It is away until it is begun anew."""
        self.control_is_up = False
        self.run(self._control_stack.aclose())

    # What there is.

    @property
    def replicas(self) -> list[tuple[Node, str]]:
        """Those with a directory."""
        found = [(node, id) for node in self.nodes.values() for id in node.engines]
        return [
            (node, id) for node, id in found if node.lives.get(id) is not None and (node._root / id).exists()
        ]

    def engines(self) -> list[Engine]:
        return [node.engines[id] for node, id in self.replicas]

    def rows(self) -> SnapshotRows:
        return self.run(self.books.snapshot_rows())  # type: ignore[no-any-return]

    def placed(self) -> list[tuple[str, str, int]]:
        """Account, adapter and instance of what is attached or loaded."""
        rows = self.rows()
        found = {row.adapter.row_id: row.adapter.id for row in rows.adapters}
        return [(a.account_id, found[a.adapter_row_id], a.instance_id) for a in rows.attachments]

    # What is done.

    def bytes_of(self, seed: int, rank: int = 2, *, zero: bool = False) -> tuple[str, int]:
        """Digest and size of an adapter that is in the store now. `zero`: it changes nothing."""
        arrays = adapter_files.arrays(rank=rank, targets=("q_proj",), seed=seed)
        if zero:
            arrays = {key: a * 0 if "lora_B" in key else a for key, a in arrays.items()}
        weights = save(arrays)
        config = adapter_files.config_bytes(rank=rank, target_modules=["q_proj"], r=rank, lora_alpha=8 + seed)
        return stored(self.hidden if self.hidden.exists() else self.artifacts, weights, config), len(weights)

    @property
    def hidden(self) -> Path:
        """Where the store is while it is away."""
        return self.root / "away"

    async def register(self, account: int, region: str | None) -> Adapter:
        self._numbers += 1
        digest, size = self.bytes_of(self._numbers)
        who, number = self.accounts[account], self._numbers
        async with self.control.db.transaction() as tx:
            row = await tx.adapters.create(
                who.account,
                f"adp_{number:020}",
                name=f"a{number:03}",
                base_model=BASE,
                now=self.clock(),
                region=region,
            )
            await self._version(tx, row, digest, size)
            await tx.versions.went_live(who.account, row.row_id, 1, self.clock())
            live = await tx.adapters.set_live(who.account, row.row_id, 1)
        assert live is not None
        self.digests[row.id, 1] = digest
        self.control.changes.notify()
        return live

    async def version(self, row: Adapter, *, zero: bool = False) -> int:
        """One more, of other bytes; not live."""
        self._numbers += 1
        digest, size = self.bytes_of(self._numbers, zero=zero)
        async with self.control.db.transaction() as tx:
            number = await self._version(tx, row, digest, size)
        self.digests[row.id, number] = digest
        return number

    async def _version(self, tx: Any, row: Adapter, digest: str, size: int) -> int:
        made = await tx.versions.add(
            row.account_id,
            row.row_id,
            digest=digest,
            rank=2,
            alpha=8.0,
            target_modules=["q_proj"],
            size_bytes=size,
            source={},
            now=self.clock(),
        )
        return int(made.version)

    async def _step(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """With requests under way while it is done, and others that come before anybody has noticed."""
        flying = [
            self.ask(who, model, SLOW, stream=bool(n % 2)) for n, (who, model) in enumerate(self.flying)
        ]
        await asyncio.sleep(0.005 if flying else 0)

        async def work_and_ask() -> Any:
            if self.crashed:  # over what was under way
                raise Crash
            given = await work()
            flying.extend(self.ask(who, model) for who, model in self.flying)
            await asyncio.sleep(0)
            return given

        try:
            return await (super()._step(work_and_ask) if self.control_is_up else work_and_ask())
        finally:
            await asyncio.gather(*flying)

    async def restart_gateway(self) -> None:
        """What it was asked for at that moment it cannot answer."""
        await self.gateway.end()
        await self.gateway.begin()

    def hide_store(self) -> None:
        if self.artifacts.exists():
            self.artifacts.rename(self.hidden)

    def show_store(self) -> None:
        if self.hidden.exists():
            self.hidden.rename(self.artifacts)

    async def pass_time(self, seconds: float) -> None:
        """What has nothing left but a time to live that ends meanwhile is served to nobody from then on.

        But where control died before it had said so, and nobody heard of it.
        """
        rows = await self.books.snapshot_rows()
        then = self.clock() + seconds - SKEW_S
        for found in rows.adapters:
            here = [
                a
                for a in rows.attachments
                if a.adapter_row_id == found.adapter.row_id and a.state != "detaching"
            ]
            ends = [a.expires_at for a in here if a.expires_at is not None]
            if here and len(ends) == len(here) and max(ends) < then and self._told(found.adapter, max(ends)):
                self.expired[found.adapter.id] = max(ends)
        self.clock.ahead += seconds

    def _told(self, adapter: Adapter, end: float) -> bool:
        """Whether the gateway knows of its end, or is to be told."""
        route = self.gateway.route(adapter.account_id, f"{BASE}:{adapter.name}")
        known = None if route is None or route.adapter is None else route.adapter.expires_at
        return route is None or self.control_is_up or (known is not None and known <= end)

    # Traffic.

    async def traffic(self, models: Iterable[tuple[int, str]]) -> None:
        await asyncio.gather(*(self.ask(account, model) for account, model in models))

    async def served(self, account: int, model: str) -> bool:
        """Whether it comes to be answered within a moment; something may be in its way."""
        for _ in range(8):
            if (await self.gateway.ask(self.keys[account], model)).status == 200:
                return True
            if self.crashed:
                break
            with suppress(Crash):
                await self.tick()
        return False

    def ask(self, account: int, model: str, tokens: int = 2, *, stream: bool = False) -> asyncio.Task[None]:
        """Sends a request of which what comes back is judged. Call it in the loop."""
        return self._loop.create_task(self._asked(account, model, tokens, stream))

    async def _asked(self, account: int, model: str, tokens: int, stream: bool) -> None:
        asked = self._about(account, model)
        answer = await self.gateway.ask(self.keys[account], model, tokens, stream=stream)
        self._judge(asked, answer)

    def _about(self, account: int, model: str) -> Asked:
        route, now = self.gateway.route(self.accounts[account].account, model), self.clock()
        engines = tuple(engine for engine in self.engines() if not engine.killed)
        return Asked(
            account, model, now, route, self._good(route), engines, self.gateway.lives, self.clock.ahead
        )

    def _good(self, route: Route | None) -> set[tuple[str, str, int]]:
        """Engines' identities, and what the route is to: they answer with it, and the gateway knows that they do."""
        if route is None:
            return set()
        engines = {engine.url: engine for engine in self.engines() if engine.well}
        return {
            (engine.record.identity, route.upstream_name, engine.shut_out[route.upstream_name])
            for candidate in route.candidates
            if candidate.resident and (engine := engines.get(candidate.replica.url)) is not None
            if engine.holds(route.upstream_name) and engine.spec.infer_key == candidate.replica.infer_key
        }

    def _judge(self, asked: Asked, answer: Answer) -> None:
        wrong = self.seen.wrong
        about = f"{asked.model} of {asked.account}: {answer.status} {answer.code} {answer.raw[:300]!r}"
        self.counts[f"{answer.status} {answer.code}".strip()] += 1
        if answer.status == 200 and not answer.broken:
            self._judge_words(asked, answer)
            return
        if asked.lives != self.gateway.lives:
            return  # the gateway itself went
        if answer.code == "adapter_loading" and asked.ahead != self.clock.ahead:
            return  # by the gateway's clock it waited longer than any request does
        now = self.gateway.route(self.accounts[asked.account].account, asked.model)
        could = asked.good & self._good(now)
        if answer.broken and answer.status == 200:
            served, well = answer.headers.get("x-pillion-replica"), {identity for identity, *_ in could}
            if any(e.spec.id == served and e.record.identity in well for e in self.engines()):
                wrong.append(f"cut off, and its engine was well: {about}")
            elif b'"error"' not in answer.raw[-1000:]:
                wrong.append(f"silently short: {about}")
            return
        if answer.status == 0:
            wrong.append(f"no answer: {about}")
        elif b"Two replicas were lost" in answer.raw and not all(e.well for e in asked.engines):
            return  # one that is silent counts as one, though it be only slow
        elif could and not self.gateway.overdrawn and b"quarantined" not in answer.raw:
            wrong.append(f"failed, and {len(could)} could have answered: {about}")
        elif answer.status == 500 or not answer.code:
            wrong.append(f"no honest error: {about}")

    def _judge_words(self, asked: Asked, answer: Answer) -> None:
        """The words are those of the version that the answer says, which is of the adapter that was asked for."""
        wrong, found = self.seen.wrong, answer.headers.get("x-pillion-adapter-id")
        name, said = asked.model.partition(":")[2], answer.text.split(" t1")[0]
        if not name:
            if said != f"sim {BASE} base" or found is not None:
                wrong.append(f"the base said {said!r} as {found}")
            return
        version = int(answer.headers.get("x-pillion-adapter-version", 0))
        digest = self.digests.get((found or "", version), "?")
        if said != f"sim {BASE} {digest[:12]}":
            wrong.append(f"{asked.model} ({found} version {version}, {digest[:12]}) said {said!r}")
        if found != f"adp_{int(name[1:]):020}":
            wrong.append(f"{asked.model} was answered by {found}")
        over = self.expired.get(found or "")
        if over is not None and asked.began > over + SKEW_S:
            wrong.append(f"{asked.model} was served {asked.began - over:.1f} s after it expired")
        now = self.gateway.route(self.accounts[asked.account].account, asked.model)
        allowed = {v for route in (asked.route, now) if route is not None for v in versions_of(route)}
        if asked.lives == self.gateway.lives and allowed and version not in allowed:
            wrong.append(f"{asked.model} was answered by version {version}, and {sorted(allowed)} were live")

    async def strangers(self, account: int, row: Adapter) -> None:
        """Another account's words for an adapter are answered as words for nothing are."""
        other, nobody = 1 - account, f"z{row.name[1:]}"
        key = self.keys[other]
        pairs = [
            (f"{BASE}:{row.name}", None, f"{BASE}:{nobody}", None),
            (f"{row.label}:{row.row_id}", None, f"{nobody}:{row.row_id}", None),
            (BASE, row.id, BASE, f"adp_{'9' * 20}"),
            (BASE, row.name, BASE, nobody),
        ]
        self._numbers_asked += 1
        for model, ref, unknown, nothing in (
            pairs[self._numbers_asked % 4],
            pairs[(self._numbers_asked + 1) % 4],
        ):
            mine = await self.gateway.ask(key, model, ref=ref)
            theirs = await self.gateway.ask(key, unknown, ref=nothing)
            if plain(mine, model, ref) != plain(theirs, unknown, nothing) or mine.status == 200:
                self.seen.wrong.append(
                    f"a stranger to {row.name} got {mine.raw!r}, and of nothing {theirs.raw!r}"
                )

    # What always holds.

    def check(self) -> None:
        wrong = list(self.seen.wrong)
        self.seen.wrong.clear()
        assert not wrong, "; ".join(wrong)

    async def look(self) -> None:
        """What engines hold now, and what control would tell gateways."""
        for engine in self.engines():
            held = len(await engine.resident())
            if held > engine.spec.group.lora.slots:
                self.seen.wrong.append(f"{engine.spec.id} holds {held}")

    # What holds in the end.

    def mend(self) -> None:
        if not self.control_is_up:
            self.restart()
        self.run(self._mend())

    async def _mend(self) -> None:
        self.show_store()
        for node in self.nodes.values():
            if node.away:
                await node.come_back()
            for engine in node.engines.values():
                if not engine.killed:
                    engine.app.faults = msgspec.structs.replace(engine.app.faults, hang=False)

    async def all_wrong(self) -> list[str]:
        return await settled.wrong(self)
