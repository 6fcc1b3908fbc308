import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from pillion.core.errors import NotFoundError
from pillion.core.replica import AgentRecord, Replica, ReplicaSpec
from pillion.fleet.directory import create
from pillion.fleet.local import LocalProvisioner
from tests.replicas import AgentClient, Node, eventually, grant, http

AGENT = (
    sys.executable,
    "-c",
    "import sys; from pathlib import Path; from pillion.agent import run; sys.exit(run(Path(sys.argv[2])))",
)
Provision = Callable[..., LocalProvisioner]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
async def provision(node: Node) -> AsyncIterator[Provision]:
    """Provisioners over one data directory, each as after a restart of control. All of it ends with the test."""

    def make(**changes: Any) -> LocalProvisioner:
        settings = {"region": "local", "drain_s": 5.0} | changes
        return LocalProvisioner(node.data_dir, artifacts_url=node.url, argv_prefix=AGENT, **settings)

    yield make
    for process in ours(node):
        process.kill()


async def test_apply_twice_is_apply_once(node: Node, provision: Provision) -> None:
    fleet = provision()
    await fleet.apply(node.group(replicas=2))
    before = {replica.id for replica in await fleet.observe()}
    await fleet.apply(node.group(replicas=2))
    replicas = await alive(fleet, 2)
    assert {replica.id for replica in replicas} == before
    assert len({replica.infer_key for replica in replicas}) == 2
    async with http() as session:
        for replica in replicas:
            await (await client(session, node, replica)).ready()
    assert len(ours(node)) == 4  # two agents, two engines
    for process in ours(node):
        assert str(node.data_dir) in " ".join(process.cmdline())
    spec = node.data_dir / "replicas" / replicas[0].id / "spec.json"
    assert stat.S_IMODE(spec.stat().st_mode) == 0o600


async def test_delete_leaves_no_process_and_no_directory_but_the_last_log(
    node: Node, provision: Provision
) -> None:
    fleet = provision()
    await fleet.apply(node.group())
    (replica,) = await alive(fleet, 1)
    async with http() as session:
        await (await client(session, node, replica)).ready()
    await fleet.delete(7, "local")
    assert await fleet.observe() == []
    assert list((node.data_dir / "replicas").iterdir()) == []
    await eventually(lambda: not ours(node))
    lines = [line async for line in fleet.logs(replica.id, 50)]
    assert "Starting to load model tiny" in lines
    await fleet.delete(7, "local")


async def test_delete_drains(node: Node, provision: Provision) -> None:
    one = node.put("one", 1)
    fleet = provision()
    await fleet.apply(node.group(options={"tokens_per_s": 20}))
    (replica,) = await alive(fleet, 1)
    async with http() as session:
        agent = await client(session, node, replica)
        await agent.grant(grant(1, one, replica=replica.id))
        await agent.settled(1, one="loaded")
        slow = asyncio.create_task(agent.ask(one.engine_name, max_tokens=20))
        while not (await agent.engine("GET", "/pillion/v1/state"))["adapters"][0]["inflight"]:
            await asyncio.sleep(0.01)
        await asyncio.gather(fleet.delete(7, "local"), fleet.delete(7, "local"))
        assert (await slow)[0] == 200


async def test_fewer_replicas_trims_the_newest(node: Node, provision: Provision) -> None:
    fleet = provision()
    await fleet.apply(node.group(replicas=1))
    (first,) = await alive(fleet, 1)
    await fleet.apply(node.group(replicas=3))
    await alive(fleet, 3)
    await fleet.apply(node.group(replicas=1))
    await until(fleet, lambda replicas: [replica.id for replica in replicas] == [first.id])


async def test_trims_the_dead_first(node: Node, provision: Provision) -> None:
    fleet = provision()
    await fleet.apply(node.group(replicas=2))
    replicas = await alive(fleet, 2)
    victim = replicas[0]
    kill_agent(node, victim)
    await until(fleet, lambda found: sum(replica.alive for replica in found) == 1)
    await fleet.apply(node.group(replicas=1))
    await until(fleet, lambda found: [replica.id for replica in found] == [replicas[1].id])
    await eventually(lambda: len(ours(node)) <= 2)  # the engine of the dead one went as well


async def test_a_restarted_control_finds_its_replicas(node: Node, provision: Provision) -> None:
    await provision().apply(node.group())
    (before,) = await alive(provision(), 1)
    fleet = provision()
    await fleet.apply(node.group())
    assert await alive(fleet, 1) == [before]


async def test_a_dead_agent_is_started_again_and_adopts_its_engine(node: Node, provision: Provision) -> None:
    one = node.put("one", 1)
    await provision().apply(node.group())
    fleet = provision()
    (replica,) = await alive(fleet, 1)
    async with http() as session:
        agent = await client(session, node, replica)
        await agent.grant(grant(1, one, replica=replica.id))
        before = await agent.settled(1, one="loaded")
        kill_agent(node, replica)
        (dead,) = await until(fleet, lambda found: not found[0].alive)
        assert dead.agent_url is None
        assert dead.exit_reason
        await fleet.apply(node.group())
        (again,) = await alive(fleet, 1)
        assert again.id == replica.id
        after = await (await client(session, node, again)).settled(1, one="loaded")
        assert after.engine == before.engine


async def test_all_killed_comes_back(node: Node, provision: Provision) -> None:
    fleet = provision()
    await fleet.apply(node.group())
    (replica,) = await alive(fleet, 1)
    async with http() as session:
        before = await (await client(session, node, replica)).ready()
        for process in ours(node):
            process.kill()
        await until(fleet, lambda found: not found[0].alive)
        await fleet.apply(node.group())
        (again,) = await alive(fleet, 1)
        after = await (await client(session, node, again)).ready()
        assert after.engine["pid"] != before.engine["pid"]
        assert after.engine_epoch == before.engine_epoch + 1


async def test_delete_of_one_whose_agent_is_dead_ends_its_engine(node: Node, provision: Provision) -> None:
    fleet = provision()
    await fleet.apply(node.group())
    (replica,) = await alive(fleet, 1)
    async with http() as session:
        await (await client(session, node, replica)).ready()
    kill_agent(node, replica)
    await provision().delete(7, "local")
    await eventually(lambda: not ours(node))


async def test_an_agent_that_does_not_answer_is_killed(
    node: Node, provision: Provision, monkeypatch: Any
) -> None:
    monkeypatch.setattr("pillion.fleet.directory.ANSWER_GRACE_S", 1.0)
    monkeypatch.setattr("pillion.fleet.directory.APPEAR_S", 1.0)
    await provision().apply(node.group())
    fleet = provision(drain_s=0.0)
    (replica,) = await alive(fleet, 1)
    async with http() as session:
        await (await client(session, node, replica)).ready()
    os.kill(record(node, replica).pid, signal.SIGSTOP)
    await fleet.delete(7, "local")
    await eventually(lambda: not ours(node))


async def test_an_ending_begun_before_control_died_goes_on(node: Node, provision: Provision) -> None:
    await provision().apply(node.group())
    fleet = provision()
    (replica,) = await alive(fleet, 1)
    (node.data_dir / "replicas" / replica.id / "ending").touch()
    await until(fleet, lambda found: not found)
    await eventually(lambda: not ours(node))


async def test_another_generation_replaces(node: Node, provision: Provision) -> None:
    fleet = provision()
    await fleet.apply(node.group())
    (old,) = await alive(fleet, 1)
    await fleet.apply(node.group(generation=2))
    (new,) = await until(fleet, lambda found: [replica.generation for replica in found] == [2])
    assert new.id != old.id


async def test_regions_do_not_touch_each_other(node: Node, provision: Provision) -> None:
    here, there = provision(), provision(region="there")
    await here.apply(node.group())
    await there.apply(node.group(region="there"))
    assert [replica.region for replica in await here.observe()] == ["local"]
    await there.delete(7, "local")
    await there.delete(7, "there")
    assert await there.observe() == []
    assert len(await here.observe()) == 1


async def test_what_was_left_half_made_is_no_replica_and_goes(node: Node, provision: Provision) -> None:
    root = node.data_dir / "replicas"
    (root / ".gone-r1-local-aaaaaa").mkdir(parents=True)
    (root / ".new-r1-local-bbbbbb").mkdir()
    os.utime(root / ".new-r1-local-bbbbbb", (0, 0))
    (root / ".new-r1-local-cccccc").mkdir()
    (root / "r1-local-dddddd").mkdir()
    assert await provision().observe() == []
    assert {path.name for path in root.iterdir()} == {".new-r1-local-cccccc", "r1-local-dddddd"}


async def test_a_process_that_has_taken_the_number_of_a_dead_agent_is_not_touched(
    node: Node, provision: Provision
) -> None:
    spec: ReplicaSpec = node.spec()
    path = create(node.data_dir / "replicas", spec)
    me = os.getpid()
    claim = AgentRecord(me, psutil.Process(me).create_time(), "http://127.0.0.1:1", 0.0)
    (path / "agent.json").write_bytes(msgspec.json.encode(claim))
    fleet = provision()
    (found,) = await fleet.observe()
    assert not found.alive  # nobody holds the lock
    await fleet.delete(7, "local")
    assert await fleet.observe() == []


async def test_logs_of_the_unknown(provision: Provision) -> None:
    for name in ("r9-local-zzzzzz", "../../../etc/passwd", ""):
        with pytest.raises(NotFoundError):
            [line async for line in provision().logs(name, 5)]


async def test_logs_are_followed(node: Node, provision: Provision) -> None:
    fleet = provision()
    await fleet.apply(node.group())
    (replica,) = await alive(fleet, 1)
    async with http() as session:
        await (await client(session, node, replica)).ready()
    seen = []
    async for line in fleet.logs(replica.id, 1, follow=True):
        seen.append(line)
        if line == "one more":
            break
        with (node.data_dir / "replicas" / replica.id / "engine.log").open("a") as log:
            log.write("one more\n")
    assert seen[-1] == "one more"


async def test_secrets_of_the_server_do_not_reach_the_agent(
    node: Node, provision: Provision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILLION_ADMIN_KEY", "pil_secret")
    fleet = provision()
    await fleet.apply(node.group())
    (replica,) = await alive(fleet, 1)
    assert "PILLION_ADMIN_KEY" not in psutil.Process(record(node, replica).pid).environ()


async def alive(fleet: LocalProvisioner, count: int) -> list[Replica]:
    return await until(
        fleet, lambda found: len(found) == count and all(r.alive and r.agent_url for r in found)
    )


async def until(fleet: LocalProvisioner, true: Callable[[list[Replica]], object]) -> list[Replica]:
    async with asyncio.timeout(60):
        while True:
            found = await fleet.observe()
            if true(found):
                return found
            await asyncio.sleep(0.02)


async def client(session: Any, node: Node, replica: Replica) -> AgentClient:
    raw = (node.data_dir / "replicas" / replica.id / "spec.json").read_bytes()
    return AgentClient(session, replica.agent_url or "", msgspec.json.decode(raw, type=ReplicaSpec))


def record(node: Node, replica: Replica) -> AgentRecord:
    raw = (node.data_dir / "replicas" / replica.id / "agent.json").read_bytes()
    return msgspec.json.decode(raw, type=AgentRecord)


def kill_agent(node: Node, replica: Replica) -> None:
    os.kill(record(node, replica).pid, signal.SIGKILL)


def ours(node: Node) -> list[psutil.Process]:
    """Every process that has this test's own directory in its arguments."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(node.data_dir) in argument for argument in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found
