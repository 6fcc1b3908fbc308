"""What an agent does when its engine, or it itself, dies."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pillion.agent import processes
from pillion.agent.home import EngineRecord, Home
from pillion.agent.supervisor import Timing
from pillion.core.replica import AgentRecord, ReplicaStatus
from pillion.engines.driver import Launch
from tests.agent.conftest import Serving, end_engine, home_of
from tests.agent.test_agent import alive, until_in_flight
from tests.replicas import AgentClient, Node, eventually, grant, http, said

COMMAND = (
    sys.executable,
    "-c",
    "import sys; from pillion.agent import run; from pathlib import Path; sys.exit(run(Path(sys.argv[1])))",
)


async def test_a_killed_engine_comes_back_with_its_adapters_before_they_are_reported(
    node: Node, serving: Serving
) -> None:
    one, two = node.put("one", 1), node.put("two", 2)
    async with serving() as agent:
        await agent.grant(grant(1, one, two))
        before = await agent.settled(1, one="loaded", two="loaded")
        os.kill(before.engine["pid"], signal.SIGKILL)
        down = await agent.until(lambda s: not s.ready)
        assert down.engine_url is None
        assert all(row.state != "loaded" for row in down.adapters)
        seen: list[ReplicaStatus] = []
        after = await agent.until(lambda s: seen.append(s) or (s.ready and loaded(s) == 2))
        for status in seen:
            for row in status.adapters:
                if row.state == "loaded":
                    assert status.engine_epoch == 2
                    assert row.since > down.stage_since
        assert after.restarts == 1
        assert after.engine_epoch == before.engine_epoch + 1
        assert after.failure is None
        assert said((await agent.ask(one.engine_name))[1]).startswith(f"sim tiny {one.digest[:12]}")


async def test_a_hung_engine_is_killed_and_started_again(
    node: Node, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to end it might answer errors to requests that another replica could have answered."""
    one = node.put("one", 1)
    sent, send = list[signal.Signals](), processes._signal

    def note(pid: int, number: signal.Signals) -> None:
        sent.append(number)
        send(pid, number)

    monkeypatch.setattr(processes, "_signal", note)
    async with serving() as agent:
        await agent.grant(grant(1, one))
        before = await agent.settled(1, one="loaded")
        await agent.fault(hang=True)
        down = await agent.until(lambda s: not s.ready)
        assert down.failure
        assert down.failure.code == "engine_hung"
        after = await agent.until(lambda s: s.ready and loaded(s) == 1)
        assert after.engine["pid"] != before.engine["pid"]
        assert not alive(before.engine["pid"])
        assert set(sent) == {signal.SIGKILL}


async def test_an_agent_that_ends_without_its_engine_is_followed_by_one_that_adopts_it(
    node: Node, serving: Serving
) -> None:
    one, two, gone = node.put("one", 1), node.put("two", 2), node.put("gone", 3)
    async with serving(keep=True) as agent:
        await agent.grant(grant(1, one, gone))
        before = await agent.settled(1, one="loaded", gone="loaded")
        # Closed, as if its load had been cut short.
        await agent.engine("POST", f"/pillion/v1/adapters/{one.engine_name}/close")
    async with serving() as agent:
        known = await agent.ready()
        assert known.grant_version == 1
        after = await agent.settled(1, one="loaded", gone="loaded")
        assert after.engine == before.engine
        assert after.engine_epoch == before.engine_epoch
        assert after.restarts == 0
        assert after.agent_epoch != before.agent_epoch
        assert next(row for row in after.adapters if row.engine_name == gone.engine_name).load_ms is None
        await agent.grant(grant(2, one, two))
        await agent.settled(2, one="loaded", two="loaded")


async def test_an_adapter_the_engine_lost_is_loaded_again_and_one_it_should_not_have_goes(
    node: Node, serving: Serving
) -> None:
    one, stray = node.put("one", 1), node.put("stray", 2)
    async with serving() as agent:
        await agent.grant(grant(1, one))
        await agent.settled(1, one="loaded")
        path = await node.fetch(stray.digest)
        await agent.engine("POST", "/pillion/v1/adapters", name=stray.engine_name, path=str(path))
        lost = await agent.status()
        await agent.engine("DELETE", f"/pillion/v1/adapters/{one.engine_name}")
        await agent.until(lambda s: s.revision > lost.revision and loaded(s) == 1)
        while True:
            state = await agent.engine("GET", "/pillion/v1/state")
            if [held["name"] for held in state["adapters"]] == [one.engine_name]:
                break
            await asyncio.sleep(0.02)


async def test_an_engine_that_cannot_start_is_said_to_have_failed(node: Node, serving: Serving) -> None:
    (node.model / "config.json").rename(node.model / "away.json")
    async with serving() as agent:
        status = await agent.until(lambda s: s.stage == "failed")
        assert status.failure
        assert status.failure.code == "engine_exited"
        assert "config.json" in status.failure.message
        (node.model / "away.json").rename(node.model / "config.json")
        assert (await agent.ready()).failure is None


async def test_a_setting_the_engine_does_not_know_is_named(node: Node, serving: Serving) -> None:
    async with serving(options={"speed": 3}) as agent:
        status = await agent.until(lambda s: s.failure is not None)
        assert status.failure
        assert status.failure.code == "invalid_request"
        assert "speed" in status.failure.message


async def test_an_engine_that_never_answers_is_given_up(node: Node, serving: Serving) -> None:
    timing = Timing(poll_s=0.02, health_timeout_s=0.1, start_timeout_s=1.0, stop_grace_s=1)
    async with serving(timing=timing, options={"faults": {"hang": True}}) as agent:
        status = await agent.until(lambda s: s.failure is not None)
        assert status.failure
        assert status.failure.code == "engine_start_timeout"


async def test_a_request_in_flight_when_the_engine_dies_ends_and_nothing_hangs(
    node: Node, serving: Serving
) -> None:
    one = node.put("one", 1)
    async with serving(options={"tokens_per_s": 1}) as agent:
        await agent.grant(grant(1, one))
        before = await agent.settled(1, one="loaded")
        slow = asyncio.create_task(agent.ask(one.engine_name, max_tokens=1000))
        await until_in_flight(agent, one.engine_name)
        os.kill(before.engine["pid"], signal.SIGKILL)
        with pytest.raises(Exception, match=r"[Dd]isconnected|reset"):
            await slow
        await agent.until(lambda s: s.ready and s.engine_epoch == 2 and loaded(s) == 1)


# The agent as a process


async def test_kill_9_of_the_agent_leaves_the_engine_and_the_next_adopts_it(node: Node) -> None:
    one = node.put("one", 1)
    home = home_of(node, node.spec())
    async with http() as session:
        first = start(home)
        try:
            agent = await client(session, home)
            await agent.grant(grant(1, one))
            before = await agent.settled(1, one="loaded")
            assert start(home).wait(30) == 75  # two agents never serve one directory
            first.kill()
            first.wait()
            assert alive(before.engine["pid"])
            home.remove("agent.json")
            first = start(home)
            agent = await client(session, home)
            after = await agent.settled(1, one="loaded")
            assert after.engine == before.engine
            first.terminate()
            assert first.wait(30) == 0
            assert not alive(before.engine["pid"])
        finally:
            first.kill()
            first.wait()
            end_engine(home)


async def test_an_agent_that_finds_it_is_to_end_ends_the_engine_alone(node: Node) -> None:
    home = home_of(node, node.spec())
    async with http() as session:
        first = start(home)
        try:
            pid = (await (await client(session, home)).ready()).engine["pid"]
        finally:
            first.kill()
            first.wait()
    (home.directory / "ending").touch()
    assert start(home).wait(30) == 0
    await eventually(lambda: processes.identity(pid) is None)
    assert home.read("engine.json", EngineRecord) is None


def test_an_engine_is_never_started_without_being_written_down(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_of(node, node.spec())
    mark = home.directory / "started"

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(home, "write", full)
    with pytest.raises(OSError, match="no space"):
        processes.start(Launch(("/bin/touch", str(mark)), {"PATH": os.environ["PATH"]}), home, 1, 1)
    assert not mark.exists()


async def test_what_a_dead_engine_started_is_ended_too(node: Node) -> None:
    home = home_of(node, node.spec())
    launch = Launch(("/bin/sh", "-c", "sleep 300 & echo $! > child; wait"), {"PATH": os.environ["PATH"]})
    process = processes.start(launch, home, 1, 1)
    child = home.directory / "child"
    await eventually(lambda: child.exists() and child.read_text().strip())
    orphan = int(child.read_text())
    os.kill(process.record.pid, signal.SIGKILL)
    os.waitpid(process.record.pid, 0)
    assert processes.identity(orphan) is not None
    assert processes.adopt(home) is None
    await eventually(lambda: processes.identity(orphan) is None)


async def test_a_later_process_of_the_same_number_is_not_touched(node: Node) -> None:
    home = home_of(node, node.spec())
    other = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        home.write("engine.json", EngineRecord(other.pid, "another boot:1", 1, 1))
        assert processes.adopt(home) is None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def start(home: Home) -> "subprocess.Popen[bytes]":
    with (home.directory / "agent.log").open("ab") as log:
        return subprocess.Popen(
            [*COMMAND, str(home.directory)], stdout=log, stderr=log, start_new_session=True
        )


async def client(session: object, home: Home) -> AgentClient:
    path = home.directory / "agent.json"
    await eventually(path.exists)
    record = msgspec.json.decode(path.read_bytes(), type=AgentRecord)
    return AgentClient(session, record.url, home.spec())  # type: ignore[arg-type]


def loaded(status: ReplicaStatus) -> int:
    return sum(row.state == "loaded" for row in status.adapters)


def test_a_file_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / "engine.json").write_text('{"pid": 1')
    assert home.read("engine.json", EngineRecord) is None
