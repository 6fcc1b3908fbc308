"""Snapshots: applied whole, kept on disk, acknowledged, and given up when they are too old."""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from pillion.core import snapshot as wire
from pillion.core.errors import UnavailableError
from pillion.core.routing import Routes
from pillion.gateway import server
from pillion.gateway.feed import FeedError, SnapshotFeed
from pillion.gateway.kept import KeptSnapshot, gateway_id
from pillion.gateway.knowledge import Knowledge
from tests.gateway.conftest import Town
from tests.gateway.site import Control, fleet, free_url, listening, site
from tests.gateway.world import ACME, BASE, make_adapter, make_instance, make_key, make_replica, make_snapshot
from tests.snapshots import difference


async def test_revoked_key_is_refused_once_acknowledged(town: Town) -> None:
    assert (await town.site.chat(town.key, BASE))[0] == 200
    await town.publish(town.adapter, town.instance(town.a))
    assert (await town.site.chat(town.key, BASE))[0] == 401


async def test_goes_on_while_control_is_away_and_starts_from_disk(tmp_path: Path) -> None:
    key, entry = make_key()
    async with fleet(1) as (engine,):
        control = Control()
        snapshot = make_snapshot(entry, make_instance(1, make_replica("a", url=engine.url)))
        async with listening(control.handle) as control.url, site(tmp_path, control) as running:
            await control.publish(snapshot)
        # Control is gone for good; a new gateway on the same directory has only its disk.
        async with site(tmp_path, control) as running:
            assert (await running.chat(key, BASE))[0] == 200
            async with running.client.get(running.url + "/readyz") as answer:
                assert answer.status == 200
            async with running.client.get(running.url + "/v1/adapters") as answer:
                assert answer.status == 503
                assert (await answer.json())["error"]["code"] == "control_unavailable"
                assert answer.headers["retry-after"]


async def test_kept_snapshot_too_old_routes_nothing(tmp_path: Path) -> None:
    key, entry = make_key()
    gateway_id(tmp_path / "gateway", lambda: "gw_1")
    kept = KeptSnapshot(tmp_path / "gateway")
    snapshot = make_snapshot(entry, make_instance(1, make_replica("a")))
    kept.write(wire.encode(snapshot), confirmed_at=1_000_000.0)
    async with site(tmp_path / "gateway", Control(url=free_url()), snapshot_max_age_s=60) as running:
        status, headers, body = await running.chat(key, BASE)
        assert (status, body["error"]["code"]) == (503, "control_unavailable")
        assert headers["retry-after"]
        async with running.client.get(running.url + "/readyz") as answer:
            assert answer.status == 503
        async with running.client.get(running.url + "/healthz") as answer:
            assert answer.status == 200


async def test_before_the_first_snapshot_it_is_not_ready(tmp_path: Path, control: Control) -> None:
    async with site(tmp_path / "gateway", control) as running:
        async with running.client.get(running.url + "/readyz") as answer:
            assert answer.status == 503
        status, _, body = await running.chat("pil_x", BASE)
        assert (status, body["error"]["code"]) == (503, "control_unavailable")


@pytest.mark.parametrize("rubbish", [b"", b"\x00", b"{}", wire.encode(make_snapshot())[:-3]])
async def test_rubbish_on_disk_is_left_aside(tmp_path: Path, control: Control, rubbish: bytes) -> None:
    gateway_id(tmp_path, lambda: "gw_1")
    (tmp_path / "snapshot.msgpack").write_bytes(rubbish)
    key, entry = make_key()
    async with fleet(1) as (engine,), site(tmp_path, control) as running:
        await control.publish(make_snapshot(entry, make_instance(1, make_replica("a", url=engine.url))))
        assert (await running.chat(key, BASE))[0] == 200


class Script:
    """A source that gives what it was told, in turn."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.asked: list[int] = []
        self.epochs: list[str] = []

    async def poll(self, after: int, epoch: str) -> bytes | None:
        self.asked.append(after)
        self.epochs.append(epoch)
        return self.answers.pop(0)


def feed_of(directory: Path, source: Script, now: list[float]) -> tuple[SnapshotFeed, Knowledge]:
    knowledge = Knowledge(lambda: now[0], max_age_s=100)
    return SnapshotFeed(source, KeptSnapshot(directory), knowledge, lambda: now[0], lambda: 0.5), knowledge


async def test_steps(tmp_path: Path) -> None:
    now = [1_000.0]
    versions = [wire.encode(make_snapshot(version=number)) for number in (7, 6, 8)]
    source = Script(versions[0], None, versions[1], b"rubbish", versions[2])
    feed, knowledge = feed_of(tmp_path, source, now)
    with pytest.raises(UnavailableError):
        knowledge.routes()
    assert await feed.step()
    assert (knowledge.version, knowledge.age) == (7, 0)
    now[0] = 1_090.0
    assert knowledge.age == 90
    assert not await feed.step()
    assert (knowledge.version, knowledge.age) == (7, 0)
    for _ in range(2):
        with pytest.raises(FeedError):
            await feed.step()
    assert knowledge.version == 7
    now[0] = 1_191.0
    with pytest.raises(UnavailableError, match="too long"):
        knowledge.routes()
    await feed.step()
    assert knowledge.routes().version == 8
    assert source.asked == [0, 7, 7, 7, 7]


async def test_what_is_kept_is_private_and_knows_its_age(tmp_path: Path) -> None:
    now = [1_000.0]
    feed, _ = feed_of(tmp_path, Script(wire.encode(make_snapshot(version=7)), None), now)
    await feed.step()
    now[0] = 1_050.0
    await feed.step()
    path = tmp_path / "snapshot.msgpack"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    now[0] = 1_060.0
    again, knowledge = feed_of(tmp_path, Script(), now)
    await again.start()
    assert (knowledge.version, knowledge.age) == (7, 10)


async def test_deltas_are_applied_kept_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [
        make_snapshot(*[make_adapter(n) for n in range(2, row + 1)], version=row) for row in range(1, 8)
    ]
    news = [wire.encode(states[0])]
    for before, after in itertools.pairwise(states):
        news.append(wire.encode(difference(before, after)))
    now = [1_000.0]
    feed, knowledge = feed_of(tmp_path, Script(*news), now)
    for state in states:
        if state.version == 6:
            monkeypatch.setattr("pillion.gateway.kept.COMPACT_BYTES", 0)
        assert await feed.step()
        assert knowledge.version == state.version
        again, found = feed_of(tmp_path, Script(), now)
        await again.start()
        assert found.version == state.version
        assert found.routes().list_models(ACME, 0.0) == knowledge.routes().list_models(ACME, 0.0)
    path = tmp_path / "snapshot.deltas"
    assert not path.exists() or stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_torn_delta_ends_what_is_kept(tmp_path: Path) -> None:
    first, second = make_snapshot(version=1), make_snapshot(make_adapter(2), version=2)
    delta = difference(first, second)
    feed, _ = feed_of(tmp_path, Script(wire.encode(first), wire.encode(delta)), [1.0])
    await feed.step()
    await feed.step()
    path = tmp_path / "snapshot.deltas"
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        again, found = feed_of(tmp_path, Script(), [1.0])
        await again.start()
        assert found.version == 1


async def test_what_comes_after_a_torn_delta_is_found(tmp_path: Path) -> None:
    states = [make_snapshot(*[make_adapter(n) for n in range(2, row + 1)], version=row) for row in (1, 2, 3)]
    one, two = (wire.encode(difference(before, after)) for before, after in itertools.pairwise(states))
    feed, _ = feed_of(tmp_path, Script(wire.encode(states[0]), one), [1.0])
    await feed.step()
    await feed.step()
    path = tmp_path / "snapshot.deltas"
    path.write_bytes(path.read_bytes()[:-3])
    again, found = feed_of(tmp_path, Script(one, two), [1.0])
    await again.start()
    assert found.version == 1
    for _ in range(2):
        await again.step()
    last, found = feed_of(tmp_path, Script(), [1.0])
    await last.start()
    assert found.version == 3


async def test_a_damaged_snapshot_is_left_aside(tmp_path: Path) -> None:
    """One byte of a key's account, say: it would be read as another's."""
    _, entry = make_key()
    KeptSnapshot(tmp_path).write(wire.encode(make_snapshot(entry)), confirmed_at=1.0)
    path = tmp_path / "snapshot.msgpack"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        feed, found = feed_of(tmp_path, Script(), [1.0])
        await feed.start()
        assert found.version == 0
    path.write_bytes(whole + b"x")
    await feed.start()
    assert found.version == 0


@pytest.mark.parametrize("lost", ["delta", "whole"])
async def test_what_a_full_disk_lacks_makes_it_no_younger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """A key that was revoked in it would open doors for as long as a snapshot may be old, from now on."""
    now = [1_000.0]
    states = [
        make_snapshot(*[make_adapter(n) for n in range(2, row + 1)], version=row) for row in range(1, 6)
    ]
    states = [msgspec.structs.replace(state, epoch="mine") for state in states]
    deltas = [wire.encode(difference(before, after)) for before, after in itertools.pairwise(states)]
    second = deltas[0] if lost == "delta" else wire.encode(states[1])
    source = Script(wire.encode(states[0]), second, deltas[1], None, wire.encode(states[3]), deltas[3], None)
    feed, knowledge = feed_of(tmp_path, source, now)
    await feed.step()

    def full(file: int) -> None:
        raise OSError(28, "no space left")

    async def kept() -> tuple[int, float]:
        again, found = feed_of(tmp_path, Script(), now)
        await again.start()
        return found.version, found.age

    now[0] = 1_010.0
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        await feed.step()
    for _ in range(2):
        now[0] += 10
        await feed.step()
        assert knowledge.age == 0
    assert knowledge.version == 3
    version, age = await kept()
    assert (version < 3, age) == (True, 30)
    now[0] += 10
    await feed.step()
    assert await kept() == (4, 0)
    now[0] += 10
    await feed.step()
    assert await kept() == (5, 0)
    now[0] += 10
    await feed.step()
    assert await kept() == (5, 0)
    assert source.epochs == ["", "mine", "", "", "", "mine", "mine"]


async def test_a_clock_set_back_makes_nothing_younger(tmp_path: Path) -> None:
    KeptSnapshot(tmp_path).write(wire.encode(make_snapshot()), confirmed_at=5_000.0)
    feed, knowledge = feed_of(tmp_path, Script(), [1_000.0])
    await feed.start()
    assert knowledge.age == 0


async def test_a_disk_that_fails_stops_nothing(tmp_path: Path) -> None:
    feed, knowledge = feed_of(tmp_path / "missing", Script(wire.encode(make_snapshot(version=3))), [0.0])
    await feed.step()
    assert knowledge.version == 3


def test_gateway_id_stays(tmp_path: Path) -> None:
    state = tmp_path / "a" / "b"
    assert gateway_id(state, lambda: "gw_1") == "gw_1"
    assert gateway_id(state, lambda: "gw_2") == "gw_1"
    assert stat.S_IMODE(os.stat(state).st_mode) == 0o700


async def test_requests_see_one_snapshot_or_the_other(town: Town) -> None:
    """Adapter and engine move together between two snapshots; no request sees half of each."""
    other = make_adapter(2, labels=("ft1",))
    before = make_instance(1, make_replica("a", town.adapter, url=town.a.url))
    after = make_instance(2, make_replica("b", town.adapter, other, url=town.b.url))
    worlds = [(town.entry, town.adapter, before), (town.entry, make_adapter(1, instances=(2,)), other, after)]

    async def ask() -> str:
        status, headers, _ = await town.site.chat(town.key, "ft1:1")
        assert status == 200
        return f"{headers['x-pillion-instance']}{headers['x-pillion-replica']}"

    seen: set[str] = set()
    for turn in range(6):
        asking = [asyncio.ensure_future(ask()) for _ in range(10)]
        await town.publish(*worlds[turn % 2])
        seen.update(await asyncio.gather(*asking))
    assert seen <= {"1a", "1b", "2b"}
    assert {"1a", "2b"} <= seen


def test_index_of_many_adapters_is_quick_to_ask() -> None:
    """A look-up does not grow with the snapshot: it touches what it names."""
    adapters = [make_adapter(row, f"acc_{row % 1000}") for row in range(1, 20_001)]
    replica = make_replica("a", *adapters)
    routes = Routes(make_snapshot(*adapters, *(make_instance(1, replica, account=None),)))
    assert len(routes.list_models("acc_7", 0.0)) == 2 + 2 * 20
    assert routes.resolve("acc_7", "ft7:7", None, 0.0).adapter is adapters[6]


async def test_news_that_nobody_foresaw_do_not_end_the_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "AGAIN_S", 0.01)
    poison = [make_replica("a")]

    class Odd(Control):
        async def _poll(self, request: web.Request) -> web.StreamResponse:
            after = int(request.query["after"])
            if not after or not poison:
                return await super()._poll(request)
            of_nobody = ((999, poison.pop()),)
            delta = wire.Delta(after, after + 1, 0.0, {}, None, (), (), (), (), of_nobody)
            return web.Response(body=wire.encode(delta), content_type="application/msgpack")

    (key, entry), control = make_key(), Odd()
    async with (
        fleet(1) as (engine,),
        listening(control.handle) as control.url,
        site(tmp_path, control) as running,
    ):
        instance = make_instance(1, make_replica("a", url=engine.url))
        await control.publish(make_snapshot(instance))
        assert (await running.chat(key, BASE))[0] == 401
        await control.publish(make_snapshot(entry, instance, version=3))
        assert not poison
        assert (await running.chat(key, BASE))[0] == 200
