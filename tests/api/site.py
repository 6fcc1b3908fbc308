"""The control API in a test: clients with the keys of two tenants and of the operator, over one control."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI

from pillion.api import app as api_app
from pillion.control import accounts, imports, jobs, keys
from pillion.control.context import Control
from pillion.control.keys import Principal
from tests import adapter_files
from tests.control.fakes import FakeFleet
from tests.control.world import World, stopped, until

Answer = httpx.Response


@dataclass
class Tenant:
    """An account with a client of its own for each kind of key."""

    who: Principal
    manage: httpx.AsyncClient
    infer: httpx.AsyncClient

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.manage.get(path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.manage.post(path, json=body, **options)

    async def patch(self, path: str, body: Any) -> Answer:
        return await self.manage.patch(path, json=body)

    async def delete(self, path: str, **options: Any) -> Answer:
        return await self.manage.delete(path, **options)

    async def upload(
        self,
        name: str = "mine",
        base: str = "tiny",
        *,
        weights: bytes | None = None,
        config: bytes | None = None,
        region: str | None = None,
        **options: Any,
    ) -> Answer:
        files: dict[str, Any] = {
            "file": ("adapter_model.safetensors", weights or adapter_files.weights(**options))
        }
        if config is not None:
            files["config"] = ("adapter_config.json", config)
        data = {"name": name, "base_model": base} | ({"region": region} if region else {})
        return await self.manage.post("/v1/adapters/upload", data=data, files=files)

    async def adapter(self, name: str = "mine", **options: Any) -> dict[str, Any]:
        """An adapter that is there, made if need be of bytes of its own."""
        options.setdefault("seed", sum(name.encode()))
        answer = await self.upload(name, **options)
        assert answer.status_code == 201, answer.text
        return found(answer)


@dataclass
class Site:
    world: World
    control: Control
    app: FastAPI
    a: Tenant
    b: Tenant
    admin: httpx.AsyncClient
    nobody: httpx.AsyncClient

    @property
    def fleet(self) -> FakeFleet:
        return self.world.fleets["local"]

    async def running(self, tenant: Tenant | None = None, slots: int = 3, **body: Any) -> dict[str, Any]:
        """An instance that runs."""
        tenant = tenant or self.a
        lora = body.pop("lora", {"max_adapters": slots})
        answer = await tenant.post("/v1/instances", {"model": "tiny", "lora": lora, **body})
        assert answer.status_code == 202, answer.text
        path = f"/v1/instances/{answer.json()['id']}"

        async def look() -> dict[str, Any]:
            return found(await tenant.get(path))

        return await until(self.control, look, lambda i: i["state"] == "running")

    async def attached(self, tenant: Tenant, instance: int, adapter: dict[str, Any]) -> dict[str, Any]:
        """An attachment that is ready."""
        answer = await tenant.post(f"/v1/instances/{instance}/adapters", {"adapter": adapter["id"]})
        assert answer.status_code == 202, answer.text

        async def look() -> dict[str, Any]:
            page = found(await tenant.get(f"/v1/instances/{instance}/adapters"))
            return next(row for row in page["data"] if row["adapter_id"] == adapter["id"])

        return await until(self.control, look, lambda row: row["state"] == "ready")


@cache
def application() -> FastAPI:
    """Built once per test process: that takes longer than most tests."""
    return api_app.build(SimpleNamespace())  # type: ignore[arg-type]


@asynccontextmanager
async def site(world: World, *, workers: int = 0) -> AsyncIterator[Site]:
    """Two tenants and an operator. `workers` that work off imports."""
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(world.control())
        control.job_ends[imports.KIND] = imports.ended
        for number in range(workers):
            work = jobs.run(control, f"worker-{number}", imports.KIND, imports.work, imports.ended)
            stack.push_async_callback(stopped, asyncio.create_task(work))
        app = application()
        app.state.control = control

        async def client(key: str | None) -> httpx.AsyncClient:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            headers = {"authorization": f"Bearer {key}"} if key else {}
            made = httpx.AsyncClient(
                transport=transport, base_url="http://pillion", headers=headers, timeout=60
            )
            return await stack.enter_async_context(made)

        async def tenant(name: str, tier: Any = "reserved") -> Tenant:
            account = await accounts.create(control, name, tier)
            manage = await keys.mint(control, account.id, "manage", ["inference", "manage"])
            infer = await keys.mint(control, account.id, "infer", ["inference"])
            who = Principal(account.id, manage.id, frozenset(manage.scopes))
            return Tenant(who, await client(manage.key), await client(infer.key))

        operator = await accounts.bootstrap(control, None, lambda _: None)
        yield Site(
            world,
            control,
            app,
            await tenant("a"),
            await tenant("b"),
            await client(operator),
            await client(None),
        )


def found(answer: Answer) -> dict[str, Any]:
    assert answer.is_success, answer.text
    body: dict[str, Any] = answer.json()
    return body


def refused(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """The error, in OpenAI's shape."""
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) - {"reasons"} == {"message", "type", "param", "code"}
    assert error["code"] == code, error
    assert error["message"]
    return error
