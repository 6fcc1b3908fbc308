"""Imports from a hub: the adapter, its job, and what becomes of both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from pillion.control import imports, jobs
from pillion.control.jobs import JobCancelledError, Progress
from pillion.core.errors import UnavailableError
from pillion.store.rows import Job
from tests import adapter_files
from tests.api.site import Site, Tenant, found, refused
from tests.api.site import site as made_site
from tests.artifacts.hub_server import HubServer, hub_server
from tests.control.world import World, stopped

FILES = {
    "adapter_model.safetensors": adapter_files.weights(),
    "adapter_config.json": adapter_files.config_bytes(),
    "README.md": b"# mine",
}
BIG = {
    "adapter_model.safetensors": adapter_files.weights(rank=64)
}  # more than the hub sends before it stalls
BODY = {"name": "mine", "base_model": "tiny", "repo": "me/adapter"}


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HubServer]:
    async with hub_server() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


@pytest.fixture
async def site(world: World) -> AsyncIterator[Site]:
    async with made_site(world, workers=1) as made:
        yield made


@pytest.fixture
async def idle(world: World) -> AsyncIterator[Site]:
    """Nobody works off jobs."""
    async with made_site(world) as made:
        yield made


async def ended(tenant: Tenant, job: str) -> dict[str, Any]:
    """The job's end, by following it."""
    async with asyncio.timeout(30):
        answer = await tenant.get(f"/v1/jobs/{job}", params={"follow": "true"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    views = [json.loads(line) for line in answer.text.splitlines()]
    assert [v["progress"] for v in views] == sorted(v["progress"] for v in views)
    return views[-1]  # type: ignore[no-any-return]


def kept(site: Site) -> list[str]:
    root = site.control.artifacts.root
    return sorted(path.name for path in [*root.glob("adapters/*/*"), *root.glob("incoming/*")])


async def test_an_import_is_pinned_to_a_commit_and_ends_in_an_adapter(site: Site, hub: HubServer) -> None:
    commit = hub.add("me/adapter", FILES)
    answer = await site.a.post("/v1/adapters", BODY)
    assert answer.status_code == 202
    adapter, job = answer.json()["adapter"], answer.json()["job"]
    assert (adapter["state"], adapter["version"], job["kind"]) == ("importing", None, "hf_import")
    done = await ended(site.a, job["id"])
    assert (done["state"], done["progress"], done["error"]) == ("succeeded", 1.0, None)
    assert done["log"][0] == f"me/adapter at {commit}"
    made = found(await site.a.get("/v1/adapters/mine"))
    assert (made["id"], made["state"], made["version"], made["alpha"]) == (
        adapter["id"],
        "registered",
        1,
        8.0,
    )
    (version,) = found(await site.a.get("/v1/adapters/mine/versions"))["data"]
    assert version["source"] == {"repo": "me/adapter", "commit": commit}
    assert kept(site) == [made["digest"]]


async def test_a_private_repository_needs_the_accounts_token(site: Site, hub: HubServer) -> None:
    hub.add("me/adapter", FILES, token="hf_mine")
    refusal = await ended(site.a, found(await site.a.post("/v1/adapters", BODY))["job"]["id"])
    assert (refusal["state"], refusal["error"]["code"]) == ("failed", "invalid_request")
    found(await site.b.manage.put("/v1/account/hf-token", json={"token": "hf_mine"}))
    again = await ended(site.a, found(await site.a.post("/v1/adapters", BODY))["job"]["id"])
    assert again["state"] == "failed", "another account's token was used"
    done = await ended(site.b, found(await site.b.post("/v1/adapters", BODY))["job"]["id"])
    assert done["state"] == "succeeded"
    assert "hf_mine" not in json.dumps([refusal, again, done])


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"adapter_model.bin": b"x"}, "adapter_invalid"),
        ({"README.md": b"x"}, "adapter_invalid"),
        (FILES | {"adapter_model.safetensors": adapter_files.weights(rank=65)}, "adapter_invalid"),
        (FILES | {"adapter_model.safetensors": b"x" * 3_000_000}, "adapter_too_large"),
    ],
)
async def test_a_repository_that_is_no_adapter_leaves_the_job_alone(
    site: Site, hub: HubServer, files: dict[str, bytes], code: str
) -> None:
    hub.add("me/adapter", files)
    job = found(await site.a.post("/v1/adapters", BODY))["job"]["id"]
    done = await ended(site.a, job)
    assert (done["state"], done["error"]["code"]) == ("failed", code)
    refused(await site.a.get("/v1/adapters/mine"), 404, "not_found")
    assert kept(site) == []
    assert [row["id"] for row in found(await site.a.get("/v1/jobs"))["data"]] == [job]
    assert found(await site.a.upload("mine"))["name"] == "mine"


@pytest.mark.parametrize(
    "change",
    [
        {"repo": "../../etc/passwd"},
        {"repo": "me/adapter@main"},
        {"repo": "https://example.com/x"},
        {"repo": ""},
        {"repo": "a/b/c"},
        {"revision": "../x"},
        {"revision": "a b"},
        {"base_model": "nothing"},
        {"base_model": "embed"},
        {"region": "nowhere"},
        {"name": "12"},
        {"token": "hf_x"},
    ],
)
async def test_imports_that_cannot_be_begin_nothing(
    idle: Site, hub: HubServer, change: dict[str, Any]
) -> None:
    refused(await idle.a.post("/v1/adapters", BODY | change), 400, "invalid_request")
    assert found(await idle.a.get("/v1/adapters"))["data"] == []
    assert found(await idle.a.get("/v1/jobs"))["data"] == []
    assert hub.requests == []


async def test_the_name_is_taken_from_the_beginning(idle: Site, hub: HubServer) -> None:
    found(await idle.a.post("/v1/adapters", BODY))
    refused(await idle.a.post("/v1/adapters", BODY), 409, "name_taken")
    refused(await idle.a.upload("mine"), 409, "name_taken")


async def test_what_has_no_bytes_yet_cannot_be_used(idle: Site, hub: HubServer) -> None:
    found(await idle.a.post("/v1/adapters", BODY))
    instance = await idle.running()
    path = f"/v1/instances/{instance['id']}/adapters"
    refused(await idle.a.post(path, {"adapter": "mine"}), 404, "adapter_not_deployed")
    refused(await idle.a.post("/v1/adapters/mine/load"), 404, "adapter_not_deployed")
    refused(await idle.a.get("/v1/adapters/mine/download"), 404, "not_found")
    assert found(await idle.a.get("/v1/adapters/mine/versions"))["data"] == []


async def test_cancelling_what_is_queued(idle: Site, hub: HubServer) -> None:
    job = found(await idle.a.post("/v1/adapters", BODY))["job"]["id"]
    assert found(await idle.a.post(f"/v1/jobs/{job}/cancel"))["state"] == "cancelled"
    refused(await idle.a.get("/v1/adapters/mine"), 404, "not_found")
    refused(await idle.a.post(f"/v1/jobs/{job}/cancel"), 409, "conflict")
    refused(await idle.a.post("/v1/jobs/job_x/cancel"), 404, "not_found")


async def test_cancelling_while_it_downloads(site: Site, hub: HubServer) -> None:
    hub.add("me/adapter", BIG)
    hub.stall = True
    job = found(await site.a.post("/v1/adapters", BODY))["job"]["id"]
    async with asyncio.timeout(20):
        await hub.stalled.wait()
        found(await site.a.post(f"/v1/jobs/{job}/cancel"))
        await hub.left.wait()
    assert found(await site.a.get(f"/v1/jobs/{job}"))["state"] == "cancelled"
    refused(await site.a.get("/v1/adapters/mine"), 404, "not_found")
    hub.stall = False
    done = await ended(site.a, found(await site.a.post("/v1/adapters", BODY))["job"]["id"])
    assert done["state"] == "succeeded"
    assert len(kept(site)) == 1


async def test_deleting_the_adapter_while_it_downloads(site: Site, hub: HubServer) -> None:
    hub.add("me/adapter", BIG)
    hub.stall = True
    job = found(await site.a.post("/v1/adapters", BODY))["job"]["id"]
    async with asyncio.timeout(20):
        await hub.stalled.wait()
    found(await site.a.delete("/v1/adapters/mine"))
    await site.a.post(f"/v1/jobs/{job}/cancel")
    assert (await ended(site.a, job))["state"] == "cancelled"


async def test_jobs_of_another_tenant_are_unknown(idle: Site, hub: HubServer) -> None:
    job = found(await idle.a.post("/v1/adapters", BODY))["job"]["id"]
    for method, path in (
        ("GET", "/v1/jobs/{}"),
        ("GET", "/v1/jobs/{}?follow=true"),
        ("POST", "/v1/jobs/{}/cancel"),
    ):
        foreign = await idle.b.manage.request(method, path.format(job))
        absent = await idle.b.manage.request(method, path.format("job_x"))
        refused(foreign, 404, "not_found")
        assert foreign.content == absent.content.replace(b"job_x", job.encode())
    assert found(await idle.a.get(f"/v1/jobs/{job}"))["state"] == "queued"


async def test_pages_of_jobs(idle: Site, hub: HubServer) -> None:
    made = []
    for name in ("one", "two", "three"):
        idle.world.clock.ahead += 1
        made.append(found(await idle.a.post("/v1/adapters", BODY | {"name": name}))["job"]["id"])
    first = found(await idle.a.get("/v1/jobs", params={"limit": 2}))
    rest = found(await idle.a.get("/v1/jobs", params={"limit": 2, "after": first["next"]}))
    assert [row["id"] for row in first["data"] + rest["data"]] == made[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)


class TestRunner:
    """Jobs that do what the test says."""

    async def run_one(self, site: Site, work: Any, holder: str = "w") -> list[Job]:
        """Work off the job; those that were ended without success."""
        over: list[Job] = []

        async def ended(_: Any, job: Job) -> None:
            over.append(job)

        async def doing(_: Any, job: Job, progress: Progress) -> str:
            return await work(job, progress)  # type: ignore[no-any-return]

        job = await jobs._claim(site.control, holder, "test")
        assert job is not None
        async with asyncio.timeout(20):
            await jobs._work(site.control, holder, job, doing, ended)
        return over

    async def make(self, site: Site) -> None:
        async with site.control.db.transaction() as tx:
            await tx.jobs.create(site.a.who.account, "job_1", kind="test", subject={}, now=site.world.clock())

    async def only(self, site: Site) -> Job:
        async with site.control.db.read() as tx:
            job = await tx.jobs.get(site.a.who.account, "job_1")
        assert job is not None
        return job

    async def test_what_breaks_tells_nothing_of_the_inside(
        self, idle: Site, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async def work(_: Job, __: Progress) -> str:
            raise RuntimeError("/root/secret")

        await self.make(idle)
        over = await self.run_one(idle, work)
        job = await self.only(idle)
        assert (job.state, [j.id for j in over]) == ("failed", ["job_1"])
        assert "secret" not in json.dumps(msgspec.to_builtins(job))
        assert "/root/secret" in "".join(capsys.readouterr())

    async def test_it_beats_while_it_works_and_stops_when_cancelled(
        self, idle: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jobs, "HEARTBEAT_S", 0.02)
        cleaned = []

        async def work(_: Job, progress: Progress) -> str:
            await progress.report(0.5, "half")
            before = (await self.only(idle)).updated_at
            idle.world.clock.ahead += 1000
            while (await self.only(idle)).updated_at == before:
                await asyncio.sleep(0.01)
            assert (await self.only(idle)).message == "half"
            async with idle.control.db.transaction() as tx:
                await tx.jobs.cancel(idle.a.who.account, "job_1", idle.world.clock())
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.append(True)
            return "never"

        await self.make(idle)
        over = await self.run_one(idle, work)
        assert ((await self.only(idle)).state, len(over), cleaned) == ("cancelled", 1, [True])

    async def test_a_worker_that_was_given_up_lets_go_and_ends_nothing(self, idle: Site) -> None:
        async def work(_: Job, progress: Progress) -> str:
            idle.world.clock.ahead += 2 * jobs.STALE_S
            async with idle.control.db.transaction() as tx:
                now = idle.world.clock()
                taken = await tx.everyone.claim_job("test", "other", now, stale_before=now - jobs.STALE_S)
            assert taken is not None
            with pytest.raises(JobCancelledError):
                await progress.report(0.9, "late")
            raise JobCancelledError

        await self.make(idle)
        over = await self.run_one(idle, work, holder="late")
        job = await self.only(idle)
        assert (job.state, job.holder, over) == ("running", "other", [])

    async def test_a_database_that_is_away_for_a_while_stops_no_worker(
        self, idle: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jobs, "POLL_S", 0.01)
        claimed = jobs._claim
        refusals = 3

        done = asyncio.Event()

        async def away(*arguments: Any) -> Job | None:
            nonlocal refusals
            refusals -= 1
            if refusals >= 0:
                raise UnavailableError("away", code="unavailable")
            return await claimed(*arguments)

        async def work(*_: Any) -> str:
            done.set()
            return "done"

        monkeypatch.setattr(jobs, "_claim", away)
        await self.make(idle)
        runner = asyncio.create_task(jobs.run(idle.control, "w", "test", work, work))
        async with asyncio.timeout(20):
            await done.wait()
            while (await self.only(idle)).state == "running":
                await asyncio.sleep(0)
        await stopped(runner)
        assert (await self.only(idle)).state == "succeeded"
        assert refusals < 0

    async def test_an_import_that_is_done_already_is_not_done_again(self, idle: Site, hub: HubServer) -> None:
        """A worker died between registering the bytes and ending the job."""
        found(await idle.a.post("/v1/adapters", BODY))
        hub.add("me/adapter", FILES)
        async with idle.control.db.read() as tx:
            job = await tx.jobs.get(idle.a.who.account, found(await idle.a.get("/v1/jobs"))["data"][0]["id"])
        assert job is not None
        async with idle.control.db.transaction() as tx:
            taken = await tx.everyone.claim_job(imports.KIND, "w", idle.world.clock(), stale_before=0)
        assert taken is not None
        for _ in range(2):
            assert await imports.work(idle.control, taken, Progress(idle.control, taken, "w")) == "imported"
        assert len(found(await idle.a.get("/v1/adapters/mine/versions"))["data"]) == 1
