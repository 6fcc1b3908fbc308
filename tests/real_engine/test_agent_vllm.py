"""The agent beside a real vLLM: adapters loaded, proved, unloaded, and there again after the engine was killed."""

import asyncio
import contextlib
import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import pytest_asyncio
from safetensors.numpy import load_file, save_file
from tests.replicas import AgentClient, grant, http, row

from pillion.agent.agent import Agent, Parts
from pillion.agent.command import through
from pillion.agent.home import EngineRecord, Home
from pillion.agent.processes import EngineProcess, identity
from pillion.agent.supervisor import Timing
from pillion.core.permits import Permit, sign
from pillion.core.replica import (
    AgentRecord,
    GrantEntry,
    GroupSpec,
    LoraSpec,
    ModelSpec,
    OnDemand,
    ReplicaSpec,
)
from pillion.engines.driver import driver

pytestmark = [pytest.mark.xdist_group("real_engine"), pytest.mark.asyncio(loop_scope="module")]
START_S = 280


class World:
    """A replica whose base and adapters are those of make_models.py."""

    def __init__(self, root: Path, models: Path) -> None:
        self.data_dir = root / "data"
        self._models = models
        self._artifacts = root / "artifacts"
        group = GroupSpec(
            1,
            "local",
            1,
            ModelSpec("tiny", f"path:{models / 'base'}"),
            "vllm",
            LoraSpec(enabled=True, max_adapters=3, max_rank=16, max_active=2, on_demand=True),
            engine_options={"threads": 2, "max_num_seqs": 16, "dtype": "float32"},
        )
        directory = self.data_dir / "replicas" / "r1-local-abcdef"
        self.spec = ReplicaSpec(
            directory.name, group, "agent-token", "infer-key", "engine-key", "", "", load_key="load-key"
        )
        directory.mkdir(parents=True)
        (directory / "spec.json").write_bytes(msgspec.json.encode(self.spec))
        self.home = Home(directory)

    def adapter(self, name: str, *, zero: bool = False) -> GrantEntry:
        """One of the adapters. `zero`: with B all zero, which the upload would refuse."""
        digest = hashlib.sha256(f"{name} {zero}".encode()).hexdigest()
        place = self._artifacts / digest
        if not place.exists():
            shutil.copytree(self._models / name, place)
            if zero:
                weights = load_file(place / "adapter_model.safetensors")
                nothing = {
                    key: np.zeros_like(one) if "lora_B" in key else one for key, one in weights.items()
                }
                save_file(nothing, place / "adapter_model.safetensors")
        return GrantEntry(f"adp_{name}@{digest}", f"adp_{name}", digest, 16, 1)

    async def fetch(self, digest: str) -> Path:
        return self._artifacts / digest


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, models: Path) -> World:
    return World(tmp_path_factory.mktemp("replica"), models)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(world: World, engine_python: Path) -> AsyncIterator[AgentClient]:
    vllm = driver("vllm")
    python = through(world.data_dir / "cache" / "engines", engine_python)
    parts = Parts(
        driver=vllm,
        launch=lambda port: vllm.command(world.spec, port, python, world.data_dir),
        fetch=world.fetch,
        epoch="epoch",
        now=time.time,
        random=lambda: 0.0,
        timing=Timing(probe_s=0.5),
    )
    running = asyncio.create_task(Agent(world.home, world.spec, parts).run())
    try:
        async with http() as session:
            while (record := world.home.read("agent.json", AgentRecord)) is None:
                await asyncio.sleep(0.01)
            yield AgentClient(session, record.url, world.spec)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        engine = world.home.read("engine.json", EngineRecord)
        if engine is not None:
            await EngineProcess(engine).end(20)


async def test_it_comes_up_in_stages(world: World, agent: AgentClient) -> None:
    seen: list[str] = []
    status = await agent.until(lambda s: seen.append(s.stage) or s.ready, deadline_s=START_S)
    # One that is short may fall between two looks.
    order = ["starting", "loading", "warming", "ready"]
    assert [order.index(stage) for stage in seen] == sorted(order.index(stage) for stage in seen)
    assert (seen[0], seen[-1], len(set(seen)) >= 3) == ("starting", "ready", True)
    assert status.engine["name"] == "vllm"
    assert status.engine["max_requests"] == 16
    processes = arguments_of_session(status.engine["pid"])
    assert len(processes) >= 2
    for arguments in processes:
        assert str(world.data_dir) in arguments
        assert world.spec.engine_key not in arguments


async def test_loads_are_proved_and_quick(world: World, agent: AgentClient) -> None:
    entries = [world.adapter(name) for name in ("one", "two")]
    await agent.grant(grant(1, *entries, replica=world.spec.id))
    status = await agent.settled(1, one="loaded", two="loaded")
    for entry in entries:
        found = row(status, entry)
        assert found.proof is not None
        assert found.proof.difference > 100 * max(found.proof.noise, 1e-6)
        print(f"{entry.adapter_id}: {found.proof} load_ms={found.load_ms}")
    answers = {await said(agent, name) for name in ("tiny", *(e.engine_name for e in entries))}
    assert len(answers) == 3


async def test_what_changes_nothing_fails_the_proof(world: World, agent: AgentClient) -> None:
    one, two, three = (world.adapter(name) for name in ("one", "two", "three"))
    nothing = world.adapter("four", zero=True)
    await agent.grant(grant(2, one, nothing, replica=world.spec.id))
    status = await agent.settled(2, one="loaded", four="failed")
    failure = row(status, nothing).failure
    assert failure is not None
    assert failure.code == "adapter_ineffective"
    state = await agent.engine("GET", "/pillion/v1/state")
    assert [held["name"] for held in state["adapters"]] == [one.engine_name]
    await agent.grant(grant(3, one, two, three, replica=world.spec.id))
    await agent.settled(3, one="loaded", two="loaded", three="loaded")


async def test_unloaded_is_gone_from_the_engine(world: World, agent: AgentClient) -> None:
    one, three = world.adapter("one"), world.adapter("three")
    await agent.grant(grant(4, one, replica=world.spec.id))
    await agent.settled(4, one="loaded")
    code, answer = await agent.ask(three.engine_name)
    assert (code, answer["error"]["code"]) == (503, "adapter_not_resident")
    assert await said(agent, one.engine_name)


async def test_a_killed_engine_comes_back_with_its_adapters(world: World, agent: AgentClient) -> None:
    one = world.adapter("one")
    before = await agent.settled(4, one="loaded")
    session = pids_of_session(before.engine["pid"])
    answer = await said(agent, one.engine_name)
    os.kill(before.engine["pid"], signal.SIGKILL)
    await agent.until(lambda s: not s.ready)
    after = await agent.until(
        lambda s: s.ready and [r.state for r in s.adapters] == ["loaded"], deadline_s=START_S
    )
    assert after.engine_epoch == before.engine_epoch + 1
    assert await said(agent, one.engine_name) == answer
    assert all(identity(pid) is None for pid in session)


async def test_on_demand_many_who_wait_share_one_load_and_few_slots_serve_many(
    world: World, agent: AgentClient
) -> None:
    one = world.adapter("one")
    await agent.grant(grant(5, one, replica=world.spec.id, on_demand=OnDemand(KEY, None)))
    await agent.settled(5, one="loaded")
    alone = {"one": await said(agent, one.engine_name)}
    asked = [world.adapter(name) for name in ("two", "three", "four")]
    for entry in asked:
        loads = await asyncio.gather(*(agent.load(permit(entry)) for _ in range(20)))
        assert {status for status, _ in loads} == {200}
        assert len({body["load_ms"] for _, body in loads}) == 1, "one load"
        print(f"{entry.adapter_id} on demand: {loads[0][1]['load_ms']} ms")
        alone[entry.adapter_id[4:]] = await user_said(agent, entry.engine_name)
    assert len(set(alone.values())) == 4
    status = await agent.status()
    assert {r.engine_name.partition("@")[0] for r in status.adapters if r.state == "loaded"} == {
        "adp_one",
        "adp_three",
        "adp_four",
    }, "what was asked for longest ago made room, what is attached did not"

    async def client(order: list[GrantEntry]) -> None:
        for entry in order:
            while (found := await served(agent, entry)) is None:
                pass
            assert found == alone[entry.adapter_id[4:]]

    rng = random.Random(5)
    await asyncio.gather(*(client(rng.choices([one, *asked], k=12)) for _ in range(6)))
    state = await agent.engine("GET", "/pillion/v1/state")
    assert len(state["adapters"]) <= 3


KEY = b"k" * 32


def permit(entry: GrantEntry) -> bytes:
    made = Permit("acc_a", "tiny", None, entry.adapter_id, entry.digest, entry.rank, entry.size_bytes)
    return sign(made, KEY)


async def served(agent: AgentClient, entry: GrantEntry) -> str | None:
    """As a gateway does: asks for the load, then for the answer; None where it has to try again."""
    status, body = await agent.load(permit(entry))
    assert status == 200 or body["error"]["code"] == "instance_at_capacity", body
    return await user_said(agent, entry.engine_name) if status == 200 else None


async def user_said(agent: AgentClient, model: str) -> str | None:
    status = await agent.status()
    body = {"model": model, "prompt": "w5 w6 w7", "max_tokens": 8, "temperature": 0}
    headers = {"authorization": f"Bearer {agent.spec.infer_key}"}
    async with agent.http.post(f"{status.engine_url}/v1/completions", json=body, headers=headers) as answer:
        found = await answer.json()
    assert answer.status in (200, 503), found
    text: str = found["choices"][0]["text"] if answer.status == 200 else ""
    return text or None


async def said(agent: AgentClient, model: str) -> str:
    body = {"model": model, "prompt": "w5 w6 w7", "max_tokens": 8, "temperature": 0}
    answer = await agent.engine("POST", "/v1/completions", **body)
    text: str = answer["choices"][0]["text"]
    return text


def pids_of_session(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if entry.name.isdigit() and os.getsid(int(entry.name)) == leader:
                found.append(int(entry.name))
    return found


def arguments_of_session(leader: int) -> list[str]:
    return [
        Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        for pid in pids_of_session(leader)
    ]
