"""Versions over HTTP: added, made live, rolled back, tried; and what is refused leaves nothing behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests import adapter_files
from tests.api.site import Answer, Site, Tenant, found, refused
from tests.api.site import site as made_site
from tests.api.test_adapters import kept
from tests.api.test_imports import FILES, ended
from tests.artifacts.hub_server import HubServer, hub_server
from tests.control.world import World

PATH = "/v1/adapters/mine/versions"


async def add(tenant: Tenant, seed: int = 2, query: str = "", **fields: str) -> Answer:
    files = {"file": ("adapter_model.safetensors", adapter_files.weights(seed=seed))}
    return await tenant.manage.post(PATH + query, data=fields, files=files)


async def states(tenant: Tenant) -> list[str]:
    return [version["state"] for version in found(await tenant.get(PATH))["data"]]


class TestUpload:
    async def test_new_bytes_are_the_next_version(self, site: Site) -> None:
        first = await site.a.adapter()
        answer = await add(site.a)
        made = found(answer)
        assert (answer.status_code, made["version"], made["state"], made["live"]) == (201, 2, "live", True)
        now = found(await site.a.get("/v1/adapters/mine"))
        assert (now["version"], now["digest"], now["previous_version"]) == (2, made["digest"], 1)
        assert made["digest"] != first["digest"]
        assert await states(site.a) == ["former", "live"]
        data = adapter_files.weights(seed=2)
        assert (await site.a.get("/v1/adapters/mine/download")).content == data

    async def test_it_can_be_kept_back(self, site: Site) -> None:
        await site.a.adapter()
        assert found(await add(site.a, query="?live=false"))["state"] == "kept_back"
        assert await states(site.a) == ["live", "kept_back"]
        answer = await site.a.post(f"{PATH}/2/live")
        assert (answer.status_code, found(answer)["state"]) == (200, "live")

    async def test_the_same_bytes_again(self, site: Site) -> None:
        await site.a.adapter(seed=7)
        answer = await add(site.a, seed=7)
        made = found(answer)
        assert (answer.status_code, made["version"]) == (200, 1)
        assert "these are the bytes of version 1" in " ".join(made["warnings"])
        assert await states(site.a) == ["live"]

    async def test_its_own_name_base_and_region_may_be_given(self, site: Site) -> None:
        await site.a.adapter(region="far")
        assert (await add(site.a, name="mine", base_model="tiny", region="far")).status_code == 201
        refused(await add(site.a, 3, base_model="other"), 400, "base_mismatch")
        refused(await add(site.a, 3, name="another"), 400, "invalid_request")
        refused(await add(site.a, 3, region="local"), 400, "invalid_request")
        refused(await add(site.a, 3, label="x"), 400, "invalid_request")
        assert await states(site.a) == ["former", "live"]

    @pytest.mark.parametrize("weights", [b"hello", adapter_files.weights(rank=65), b""])
    async def test_bad_bytes_leave_nothing_behind(self, site: Site, weights: bytes) -> None:
        await site.a.adapter()
        before = kept(site)
        answer = await site.a.manage.post(PATH, files={"file": ("x", weights)})
        refused(answer, *((422, "adapter_invalid") if weights else (400, "invalid_request")))
        assert kept(site) == before
        assert await states(site.a) == ["live"]

    async def test_another_accounts_adapter_is_unknown_before_its_bytes_are_taken(self, site: Site) -> None:
        await site.a.adapter()
        refused(await add(site.b), 404, "not_found")
        assert len(kept(site)) == 1

    async def test_a_body_of_another_kind(self, site: Site) -> None:
        await site.a.adapter()
        answer = await site.a.manage.post(PATH, content=b"x", headers={"content-type": "text/plain"})
        refused(answer, 400, "invalid_request")


@pytest.mark.parametrize("ref", ["id", "row_id", "name"])
async def test_others_do_not_see_that_it_is_there(site: Site, ref: str) -> None:
    theirs = (await site.a.adapter("theirs"))[ref]
    absent = {"id": "adp_zzzzzzzzzzzzzzzzzzzz", "row_id": 987654, "name": "nobodys"}[ref]
    asks: list[tuple[str, str, Any]] = [
        ("GET", "versions", None),
        ("POST", "versions", {"repo": "a/b"}),
        ("POST", "versions/1/live", None),
        ("POST", "rollback", None),
        ("PUT", "canary", {"version": 1, "share": 0.5}),
        ("DELETE", "canary", None),
    ]
    for method, path, body in asks:
        one, other = [
            await site.b.manage.request(method, f"/v1/adapters/{name}/{path}", json=body)
            for name in (theirs, absent)
        ]
        assert one.status_code == other.status_code == 404, (method, path, one.text)
        assert one.text == other.text.replace(str(absent), str(theirs))


@pytest.fixture
async def importing(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Site, HubServer]]:
    async with hub_server() as hub, made_site(world, workers=1) as made:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield made, hub


async def test_a_version_is_imported(importing: tuple[Site, HubServer]) -> None:
    site, hub = importing
    await site.a.adapter(seed=1)
    commit = hub.add("me/adapter", FILES)
    answer = await site.a.post(PATH, {"repo": "me/adapter"})
    assert answer.status_code == 202
    body = found(answer)
    assert (body["adapter"]["name"], body["job"]["subject"]["version"]) == ("mine", True)
    done = await ended(site.a, body["job"]["id"])
    assert (done["state"], done["message"]) == ("succeeded", "version 2")
    (_, version) = found(await site.a.get(PATH))["data"]
    assert (version["state"], version["source"]) == ("live", {"repo": "me/adapter", "commit": commit})
    again = found(await site.a.post(f"{PATH}?live=false", {"repo": "me/adapter"}))["job"]
    done = await ended(site.a, again["id"])
    assert done["message"] == "version 2, which was there already"


async def test_an_import_that_fails_leaves_the_adapter_as_it_was(importing: tuple[Site, HubServer]) -> None:
    site, _ = importing
    await site.a.adapter(seed=1)
    job = found(await site.a.post(PATH, {"repo": "me/nothing"}))["job"]
    assert (await ended(site.a, job["id"]))["state"] == "failed"
    assert await states(site.a) == ["live"]
    for bad in ({}, {"repo": "../x"}, {"repo": "a/b", "name": "c"}, {"repo": 1}):
        refused(await site.a.post(PATH, bad), 400, "invalid_request")
    answer = await site.a.manage.post(PATH, content=b"{", headers={"content-type": "application/json"})
    refused(answer, 400, "invalid_request")
    answer = await site.a.manage.post(
        PATH, content=b" " * 2_000_000, headers={"content-type": "application/json"}
    )
    refused(answer, 413, "request_too_large")


async def test_rollback_and_canary(site: Site) -> None:
    instance = await site.running(slots=2)
    await site.a.adapter()
    refused(await site.a.post("/v1/adapters/mine/rollback"), 409, "conflict")
    await site.a.post(f"/v1/instances/{instance['id']}/adapters", {"adapter": "mine"})
    await add(site.a, query="?live=false")
    answer = await site.a.manage.put("/v1/adapters/mine/canary", json={"version": 2, "share": 0.25})
    assert (answer.json()["state"], answer.json()["share"]) == ("canary", 0.25)
    now = found(await site.a.get("/v1/adapters/mine"))
    assert now["canary"] == {"version": 2, "share": 0.25}
    for share in (-0.1, 1.1, "much", None):
        body = {"version": 2, "share": share}
        refused(await site.a.manage.put("/v1/adapters/mine/canary", json=body), 400, "invalid_request")
    refused(await site.a.post(f"{PATH}/7/live"), 404, "not_found")
    refused(await site.a.post(f"{PATH}/x/live"), 400, "invalid_request")
    assert found(await site.a.delete("/v1/adapters/mine/canary"))["state"] == "kept_back"
    refused(await site.a.delete("/v1/adapters/mine/canary"), 404, "not_found")
    assert found(await site.a.post(f"{PATH}/2/live"))["state"] == "live"
    assert found(await site.a.post("/v1/adapters/mine/rollback"))["version"] == 1
    assert await states(site.a) == ["live", "former"]
