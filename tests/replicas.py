"""A node to run replicas on, for tests of the agent and of provisioners: a base, an artifact store, grants, a client."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
from safetensors.numpy import save

from pillion.artifacts.fetch import fetch
from pillion.core.adapters.digest import version_digest
from pillion.core.replica import (
    Grant,
    GrantEntry,
    GroupSpec,
    LoraSpec,
    ModelSpec,
    ReplicaSpec,
    ReplicaStatus,
    Residency,
)
from tests import adapter_files

BASE = "tiny"
DEADLINE_S = 60.0


class Node:
    """Everything under one directory. `put` makes adapters; each has its own digest."""

    def __init__(self, root: Path) -> None:
        self.data_dir = root / "data"
        self.model = root / "model"
        self.store = root / "store"
        self.url = f"file://{self.store}"
        self.model.mkdir()
        (self.model / "config.json").write_text(json.dumps(adapter_files.LLAMA))

    def group(self, instance: int = 7, replicas: int = 1, **changes: Any) -> GroupSpec:
        options = changes.pop("options", {})
        lora = changes.pop("lora", LoraSpec(enabled=True, max_adapters=3, max_rank=8))
        return GroupSpec(
            instance,
            changes.pop("region", "local"),
            replicas,
            ModelSpec(BASE, f"path:{self.model}"),
            changes.pop("engine", "sim"),
            lora,
            engine_options=options,
            **changes,
        )

    def spec(self, **changes: Any) -> ReplicaSpec:
        return ReplicaSpec(
            id="r7-local-abcdef",
            group=self.group(**changes),
            agent_token="agent-token",
            infer_key="infer-key",
            engine_key="engine-key",
            artifacts=self.url,
            cache_dir=str(self.data_dir / "cache" / "adapters"),
            load_key="load-key",
        )

    def put(self, name: str, seed: int = 0, *, rank: int = 4, zero: bool = False) -> GrantEntry:
        """An adapter in the store. `zero`: its B is all zero, so that it changes nothing."""
        arrays = adapter_files.arrays(rank=rank, seed=seed)
        if zero:
            arrays = {key: np.zeros_like(a) if "lora_B" in key else a for key, a in arrays.items()}
        weights, config = save(arrays), adapter_files.config_bytes(rank=rank)
        digest = version_digest(hashlib.sha256(weights).hexdigest(), config)
        directory = self.store / "adapters" / digest[:2] / digest
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "adapter_model.safetensors").write_bytes(weights)
        (directory / "adapter_config.json").write_bytes(config)
        return GrantEntry(f"adp_{name}@{digest}", f"adp_{name}", digest, rank, len(weights))

    async def fetch(self, digest: str) -> Path:
        return await fetch(self.url, digest, self.data_dir / "cache" / "adapters")


def replica_spec() -> ReplicaSpec:
    """Of a replica of which nothing is there."""
    lora = LoraSpec(enabled=True, max_adapters=3, max_rank=8)
    group = GroupSpec(7, "local", 1, ModelSpec(BASE, "path:/nowhere"), "sim", lora)
    return ReplicaSpec(
        "r7-local-abcdef", group, "agent-token", "infer-key", "engine-key", "file:///nowhere", "cache"
    )


def grant(version: int, *entries: GrantEntry, replica: str = "r7-local-abcdef", **changes: Any) -> Grant:
    return Grant(replica, version, entries, **changes)


class AgentClient:
    """Talks to an agent as control does, and to its engine as a gateway does."""

    def __init__(self, http: aiohttp.ClientSession, url: str, spec: ReplicaSpec) -> None:
        self.http, self.url, self.spec = http, url, spec
        self._token = {"authorization": f"Bearer {spec.agent_token}"}

    async def status(self, **query: Any) -> ReplicaStatus:
        async with self.http.get(f"{self.url}/v1/status", params=query, headers=self._token) as answer:
            assert answer.status == 200, await answer.text()
            return msgspec.json.decode(await answer.read(), type=ReplicaStatus)

    async def until(
        self, true: Callable[[ReplicaStatus], object], *, deadline_s: float = DEADLINE_S
    ) -> ReplicaStatus:
        """The first status for which it holds, by long polls."""
        end = time.monotonic() + deadline_s
        status = await self.status()
        while not true(status):
            assert time.monotonic() < end, f"not within {deadline_s} s: {status}"
            status = await self.status(epoch=status.agent_epoch, revision=status.revision, wait=5)
        return status

    async def ready(self) -> ReplicaStatus:
        return await self.until(lambda status: status.ready)

    async def settled(self, version: int, **states: str) -> ReplicaStatus:
        """When this grant is in force and exactly these adapters are there, by short name, in these states."""
        wanted = {f"adp_{name}": state for name, state in states.items()}

        def true(status: ReplicaStatus) -> bool:
            found = {row.engine_name.partition("@")[0]: row.state for row in status.adapters}
            return status.grant_version == version and found == wanted

        return await self.until(true)

    async def grant(self, given: Grant) -> int:
        data = msgspec.json.encode(given)
        async with self.http.put(f"{self.url}/v1/grant", data=data, headers=self._token) as answer:
            return answer.status

    async def load(self, signed: bytes, key: str | None = None) -> tuple[int, dict[str, Any]]:
        """As a gateway asks for a load on demand."""
        headers = {"authorization": f"Bearer {self.spec.load_key if key is None else key}"}
        async with self.http.post(f"{self.url}/v1/load", data=signed, headers=headers) as answer:
            return answer.status, await answer.json()

    async def stop(self, drain_s: float = 0.0) -> int:
        async with self.http.post(
            f"{self.url}/v1/stop", params={"drain_s": str(drain_s)}, headers=self._token
        ) as answer:
            return answer.status

    async def ask(self, model: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """One chat completion by the engine, as a gateway asks."""
        status = await self.status()
        async with self.http.post(
            f"{status.engine_url}/v1/chat/completions",
            json={"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **body},
            headers={"authorization": f"Bearer {self.spec.infer_key}"},
        ) as answer:
            return answer.status, await answer.json()

    async def engine(self, method: str, route: str, /, **body: Any) -> dict[str, Any]:
        """A call to the engine with the agent's own key."""
        status = await self.status()
        async with self.http.request(
            method,
            f"{status.engine_url}{route}",
            json=body or None,
            headers={"authorization": f"Bearer {self.spec.engine_key}"},
        ) as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def fault(self, **faults: Any) -> None:
        await self.engine("POST", "/sim/faults", **faults)


def row(status: ReplicaStatus, entry: GrantEntry) -> Residency:
    return next(found for found in status.adapters if found.engine_name == entry.engine_name)


def said(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


@asynccontextmanager
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield session


async def eventually(true: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """For what only another process knows: looks again and again until it holds."""
    end = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end, "it did not come true"
        await asyncio.sleep(0.02)
