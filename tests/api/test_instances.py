"""Instances and what is attached to and loaded on them, through the API."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pillion.control import instances, keys, pools
from pillion.core.catalogue import Pool
from tests.api.site import Site, found, refused
from tests.api.site import site as made_site
from tests.control.world import World, holds, until


class TestLaunch:
    async def test_with_nothing_but_a_model(self, site: Site) -> None:
        answer = await site.a.post("/v1/instances", {"model": "tiny"})
        assert answer.status_code == 202
        made = answer.json()
        assert made["model_string"] == f"tiny:{made['id']}"
        assert (made["state"], made["shared"], made["engine"], made["gpu_type"]) == (
            "pending",
            False,
            "sim",
            "cpu",
        )
        assert made["regions"] == {"local": 1, "far": 1}
        assert made["lora"]["enabled"] is False

    async def test_with_lora_and_its_defaults(self, site: Site) -> None:
        made = found(await site.a.post("/v1/instances", {"model": "tiny", "lora": {}}))
        assert made["lora"] == {
            "enabled": True,
            "max_adapters": 16,
            "max_rank": 64,
            "max_active": 17,
            "on_demand": False,
        }

    async def test_it_runs_and_shows_its_replicas(self, site: Site) -> None:
        made = await site.running(regions=["far"], replicas=2)
        assert [(r["region"], r["ready"], r["state"]) for r in made["replicas"]] == [
            ("far", True, "ready")
        ] * 2

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"model": "tiny", "regions": ["nowhere"]}, "regions"),
            ({"model": "tiny", "regions": ["local", "far"], "replicas": 1}, "replicas"),
            ({"model": "tiny", "gpu_type": "H100"}, "gpu_type"),
            ({"model": "tiny", "gpu_count": 5}, "gpu_count"),
            ({"model": "tiny", "gpu_count": 0}, "gpu_count"),
            ({"model": "tiny", "replicas": 0}, "replicas"),
            ({"model": "tiny", "replicas": 1001}, "replicas"),
            ({"model": "tiny", "image": "evil/image"}, "image"),
            ({"model": "tiny", "openai_compatible": False}, "openai_compatible"),
            ({"model": "tiny", "custom_api_path": "/predict"}, "custom_api_path"),
            ({"model": "tiny", "options": {"trust_remote_code": True}}, "options"),
            ({"model": "tiny", "engine": "other"}, "engine"),
            ({"model": "tiny", "lora": {"max_adapters": 65}}, "lora.max_adapters"),
            ({"model": "tiny", "lora": {"max_rank": 128}}, "lora.max_rank"),
            ({"model": "tiny", "lora": {"max_active": 99}}, "lora.max_active"),
            ({"model": "tiny", "lora": {"max_lora": 1}}, "lora.max_lora"),
            ({"model": "plain", "lora": {}}, "lora.enabled"),
            ({"model": "embed", "lora": {}}, "lora.enabled"),
            ({"model": "tiny", "custom_api_path": "x"}, "custom_api_path"),
            ({"model": "tiny", "replica": 2}, "replica"),
            ({"model": 5}, "model"),
            ({}, "model"),
        ],
    )
    async def test_what_cannot_be_launched_names_the_setting(self, site: Site, body: Any, param: str) -> None:
        assert refused(await site.a.post("/v1/instances", body), 400, "invalid_request")["param"] == param
        assert found(await site.a.get("/v1/instances", params={"all": True}))["data"] == []

    async def test_a_model_that_is_not_there(self, site: Site) -> None:
        refused(await site.a.post("/v1/instances", {"model": "nothing"}), 404, "model_not_found")


class TestStopping:
    async def test_it_leaves_the_list_and_stays_to_be_seen(self, site: Site) -> None:
        made = await site.running()
        path = f"/v1/instances/{made['id']}"
        answer = await site.a.delete(path)
        assert (answer.status_code, answer.json()["state"]) == (202, "stopping")

        async def look() -> dict[str, Any]:
            return found(await site.a.get(path))

        ended = await until(site.control, look, lambda i: i["state"] == "stopped")
        assert ended["termination_reason"] == "stopped_by_owner"
        assert found(await site.a.get("/v1/instances"))["data"] == []
        assert len(found(await site.a.get("/v1/instances", params={"all": True}))["data"]) == 1
        assert (await site.a.delete(path)).status_code == 202
        told = [e["kind"] for e in found(await site.a.get(f"{path}/events"))["data"]]
        assert told.count("replica_removed") == told.count("replica_added") == 2
        kinds = [kind for kind in told if kind.startswith("instance_")]
        assert kinds == [
            "instance_launched",
            "instance_running",
            "instance_stop_asked",
            "instance_stopped",
        ] or (kinds[0] == "instance_launched" and kinds[-2:] == ["instance_stop_asked", "instance_stopped"])

    async def test_nothing_is_attached_to_what_stops(self, site: Site) -> None:
        made, adapter = await site.running(), await site.a.adapter()
        await site.a.delete(f"/v1/instances/{made['id']}")
        body = {"adapter": adapter["id"]}
        refused(await site.a.post(f"/v1/instances/{made['id']}/adapters", body), 400, "invalid_request")


class TestLogs:
    async def test_of_all_replicas_and_of_one(self, site: Site) -> None:
        made = await site.running()
        path = f"/v1/instances/{made['id']}/logs"
        answer = await site.a.get(path)
        assert answer.headers["content-type"].startswith("text/plain")
        ids = [r["id"] for r in made["replicas"]]
        assert len(answer.text.splitlines()) == 6
        assert {line.partition(" | ")[0] for line in answer.text.splitlines()} == set(ids)
        one = await site.a.get(path, params={"replica": ids[0], "tail": 2})
        assert one.text.splitlines() == [f"{ids[0]} line {n}" for n in range(2)]
        refused(await site.a.get(path, params={"replica": "r1"}), 404, "not_found")
        refused(await site.a.get(path, params={"tail": -1}), 400, "invalid_request")

    async def test_following_ends_with_the_key(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(instances, "LOOK_S", 0.0)
        made = await site.running()
        lines = await instances.logs(site.control, site.a.who, made["id"], None, 3, follow=True)
        assert await anext(lines)
        await keys.revoke(site.control, site.a.who, site.a.who.key)
        assert [line async for line in lines] == []


class TestAttach:
    async def test_attach_ready_detach_attach_again(self, site: Site) -> None:
        made, adapter = await site.running(), await site.a.adapter()
        row = await site.attached(site.a, made["id"], adapter)
        assert (row["attached"], row["ready"], row["wanted"], row["aliases"]) == (
            True,
            2,
            2,
            adapter["aliases"],
        )
        assert found(await site.a.get("/v1/adapters/mine"))["attachments"][0]["state"] == "ready"
        answer = await site.a.delete(f"/v1/instances/{made['id']}/adapters/mine")
        assert (answer.status_code, answer.json()["state"]) == (200, "detached")
        assert found(await site.a.get(f"/v1/instances/{made['id']}/adapters"))["data"] == []
        refused(await site.a.delete(f"/v1/instances/{made['id']}/adapters/mine"), 404, "not_found")
        await site.attached(site.a, made["id"], adapter)

    async def test_by_name_by_row_id_and_by_number(self, site: Site) -> None:
        made = await site.running()
        for number, name in enumerate(("one", "two", "three")):
            adapter = await site.a.adapter(name)
            ref = (name, str(adapter["row_id"]), adapter["row_id"])[number]
            answer = await site.a.post(f"/v1/instances/{made['id']}/adapters", {"adapter": ref})
            assert answer.json()["adapter_id"] == adapter["id"]

    async def test_errors_of_attach(self, site: Site) -> None:
        adapter = await site.a.adapter("mine", rank=8)
        far = await site.a.adapter("far-one", region="far", seed=3)
        good = await site.running(slots=1, regions=["local"])
        off = found(await site.a.post("/v1/instances", {"model": "tiny"}))
        low = found(await site.a.post("/v1/instances", {"model": "tiny", "lora": {"max_rank": 4}}))
        other = found(await site.a.post("/v1/instances", {"model": "other", "lora": {}}))

        async def attach(instance: Any, ref: Any) -> Any:
            return await site.a.post(f"/v1/instances/{instance['id']}/adapters", {"adapter": ref})

        assert "LoRA off" in refused(await attach(off, adapter["id"]), 400, "invalid_request")["message"]
        assert "rank too high" in refused(await attach(low, adapter["id"]), 400, "invalid_request")["message"]
        assert "other region" in refused(await attach(good, far["id"]), 400, "invalid_request")["message"]
        refused(await attach(other, adapter["id"]), 400, "base_mismatch")
        refused(await attach({"id": 999}, adapter["id"]), 404, "not_found")
        refused(await attach(good, "nothing"), 404, "not_found")
        await site.attached(site.a, good["id"], adapter)
        refused(await attach(good, adapter["id"]), 409, "already_attached")
        second = await site.a.adapter("second")
        error = refused(await attach(good, second["id"]), 409, "instance_at_capacity")
        assert "model instance at capacity" in error["message"]
        assert [
            row["adapter"] for row in found(await site.a.get(f"/v1/instances/{good['id']}/adapters"))["data"]
        ] == ["mine"]

    async def test_eligible_instances_say_why_not(self, site: Site) -> None:
        adapter = await site.a.adapter("mine", rank=8)
        full = await site.running(slots=1)
        await site.attached(site.a, full["id"], await site.a.adapter("second"))
        good = await site.running()
        off = found(await site.a.post("/v1/instances", {"model": "tiny"}))
        other = found(await site.a.post("/v1/instances", {"model": "other", "lora": {"max_rank": 4}}))
        await site.running(site.b)
        rows = {
            row["instance_id"]: row
            for row in found(await site.a.get("/v1/adapters/mine/eligible-instances"))["data"]
        }
        assert set(rows) == {full["id"], good["id"], off["id"], other["id"]}
        assert (rows[good["id"]]["eligible"], rows[good["id"]]["reasons"], rows[good["id"]]["free"]) == (
            True,
            [],
            3,
        )
        assert (rows[full["id"]]["reasons"], rows[full["id"]]["used"]) == (["full"], 1)
        assert rows[off["id"]]["reasons"] == ["LoRA off: it is fixed at launch; launch another with LoRA"]
        assert [reason.partition(":")[0] for reason in rows[other["id"]]["reasons"]] == [
            "other base",
            "rank too high",
        ]
        await site.attached(site.a, good["id"], adapter)
        rows = {
            row["instance_id"]: row
            for row in found(await site.a.get("/v1/adapters/mine/eligible-instances"))["data"]
        }
        assert rows[good["id"]]["reasons"] == ["already attached"]

    async def test_detaching_what_is_still_attaching(self, site: Site) -> None:
        made, adapter = await site.running(), await site.a.adapter()
        for agent in site.fleet.agents.values():
            agent.hold = True
        await site.a.post(f"/v1/instances/{made['id']}/adapters", {"adapter": adapter["id"]})
        await holds(
            site.control, lambda: all(a.granted == {adapter["id"]} for a in site.fleet.agents.values())
        )
        answer = await site.a.delete(f"/v1/instances/{made['id']}/adapters/mine")
        assert answer.status_code in (200, 202)
        assert all(a.granted == set() for a in site.fleet.agents.values())

    async def test_what_drains_long_is_answered_with_202(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pillion.control import attachments

        monkeypatch.setattr(attachments, "DETACH_WAIT_S", 0.1)
        made, adapter = await site.running(), await site.a.adapter()
        await site.attached(site.a, made["id"], adapter)
        for agent in site.fleet.agents.values():
            agent.hold = True
        answer = await site.a.delete(f"/v1/instances/{made['id']}/adapters/mine")
        assert (answer.status_code, answer.json()["state"]) == (202, "detaching")
        body = {"adapter": adapter["id"]}
        refused(await site.a.post(f"/v1/instances/{made['id']}/adapters", body), 409, "already_attached")


class TestDeploy:
    async def test_attach_to_what_runs(self, site: Site) -> None:
        made, adapter = await site.running(), await site.a.adapter()
        answer = await site.a.post("/v1/adapters/mine/deploy", {"attach": {"instance_id": made["id"]}})
        assert (answer.status_code, answer.json()["adapter_id"]) == (202, adapter["id"])

    async def test_launch_and_attach_in_the_adapters_region(self, site: Site) -> None:
        await site.a.adapter(region="far")
        answer = await site.a.post("/v1/adapters/mine/deploy", {"launch": {"model": "tiny", "lora": {}}})
        assert answer.status_code == 202
        made = found(await site.a.get(f"/v1/instances/{answer.json()['instance_id']}"))
        assert made["regions"] == {"far": 1}
        assert [row["adapter"] for row in made["attachments"]] == ["mine"]

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            ({}, "invalid_request"),
            ({"attach": {"instance_id": 1}, "launch": {"model": "tiny"}}, "invalid_request"),
            ({"launch": {"model": "tiny"}}, "invalid_request"),
            ({"launch": {"model": "tiny", "lora": {"enabled": False}}}, "invalid_request"),
            ({"launch": {"model": "tiny", "lora": {"max_rank": 2}}}, "invalid_request"),
            ({"launch": {"model": "other", "lora": {}}}, "base_mismatch"),
            ({"attach": {"instance_id": "1"}}, "invalid_request"),
            ({"attach": 1}, "invalid_request"),
        ],
    )
    async def test_what_cannot_be_deployed_launches_nothing(self, site: Site, body: Any, code: str) -> None:
        await site.a.adapter()
        refused(await site.a.post("/v1/adapters/mine/deploy", body), 400, code)
        assert found(await site.a.get("/v1/instances", params={"all": True}))["data"] == []


class TestLoads:
    async def test_load_status_unload(self, site: Site) -> None:
        made, adapter = await site.running(), await site.a.adapter()
        page = await site.a.post(
            "/v1/adapters/mine/load", {"pin": True, "ttl_seconds": 60, "session_key": "s"}
        )
        assert page.status_code == 200
        (row,) = page.json()["data"]
        assert (row["state"], row["pinned"], row["attached"], row["session_key"]) == (
            "ready",
            True,
            False,
            "s",
        )
        (backend,) = found(await site.a.get("/v1/adapters/status"))["data"]
        assert (backend["instance_id"], backend["slots"], backend["used"], backend["free"]) == (
            made["id"],
            3,
            1,
            2,
        )
        (shown,) = backend["adapters"]
        assert (shown["adapter_id"], shown["state"], shown["pinned"]) == (adapter["id"], "loaded", True)
        gone = await site.a.post("/v1/adapters/mine/unload")
        assert gone.status_code == 200
        assert found(await site.a.get("/v1/adapters/status"))["data"][0]["used"] == 0
        refused(await site.a.post("/v1/adapters/mine/unload"), 404, "not_found")

    async def test_without_waiting(self, site: Site) -> None:
        await site.running()
        await site.a.adapter()
        answer = await site.a.post("/v1/adapters/mine/load", {"wait": False})
        assert (answer.status_code, answer.json()["data"][0]["state"]) == (202, "attaching")

    async def test_with_no_body_at_all(self, site: Site) -> None:
        await site.running()
        await site.a.adapter()
        assert (await site.a.manage.post("/v1/adapters/mine/load")).status_code == 200

    async def test_where_nothing_can_take_it(self, site: Site) -> None:
        await site.a.adapter()
        refused(await site.a.post("/v1/adapters/mine/load", {}), 404, "adapter_not_deployed")

    async def test_on_named_backends(self, site: Site) -> None:
        one, two = await site.running(), await site.running()
        await site.a.adapter()
        page = found(await site.a.post("/v1/adapters/mine/load", {"backends": [two["id"], str(one["id"])]}))
        assert {row["instance_id"] for row in page["data"]} == {one["id"], two["id"]}
        page = found(await site.a.post("/v1/adapters/mine/unload", {"backends": [two["id"]]}))
        assert [row["instance_id"] for row in page["data"]] == [two["id"]]
        assert len(found(await site.a.get("/v1/adapters/mine"))["attachments"]) == 1

    @pytest.mark.parametrize(
        "body",
        [
            {"backends": ["x"]},
            {"backends": [-1]},
            {"backends": 1},
            {"backends": [1] * 65},
            {"ttl_seconds": 0},
            {"ttl_seconds": -1},
            {"ttl_seconds": 1e9},
            {"ttl_seconds": "1"},
            {"session_key": "x" * 201},
            {"session_key": ""},
            {"backends": []},
            {"pinned": True},
            {"pin": "yes"},
        ],
    )
    async def test_loads_that_cannot_be(self, site: Site, body: Any) -> None:
        await site.a.adapter()
        refused(await site.a.post("/v1/adapters/mine/load", body), 400, "invalid_request")

    async def test_unload_of_what_is_attached_and_load_of_too_many(self, site: Site) -> None:
        made = await site.running(slots=1)
        await site.attached(site.a, made["id"], await site.a.adapter())
        await site.a.adapter("second")
        refused(await site.a.post("/v1/adapters/mine/unload"), 409, "adapter_in_use")
        refused(await site.a.post("/v1/adapters/second/load"), 409, "instance_at_capacity")

    async def test_warmup_loads_several(self, site: Site) -> None:
        await site.running()
        for name in ("one", "two"):
            await site.a.adapter(name)
        page = await site.a.post("/v1/adapters/warmup", {"adapters": ["one", "two"]})
        assert page.status_code == 202
        assert [row["adapter"] for row in page.json()["data"]] == ["one", "two"]
        refused(await site.a.post("/v1/adapters/warmup", {"adapters": ["nothing"]}), 404, "not_found")


class TestPools:
    @pytest.fixture
    async def site(self, world: World):
        world.catalogue = type(world.catalogue)(
            world.catalogue.regions, world.catalogue.models, (Pool("tiny", 1, max_adapters=2),), ()
        )
        async with made_site(world) as made:
            await pools.ensure(made.control)
            yield made

    async def pool(self, site: Site) -> dict[str, Any]:
        async def look() -> dict[str, Any]:
            return found(await site.a.get("/v1/instances"))["data"][0]

        return await until(site.control, look, lambda i: i["state"] == "running")

    async def test_all_see_it_and_none_attaches_stops_or_reads_its_logs(self, site: Site) -> None:
        pool, adapter = await self.pool(site), await site.a.adapter()
        assert pool["shared"] is True
        assert pool["lora"]["on_demand"] is True
        path = f"/v1/instances/{pool['id']}"
        refused(await site.a.post(f"{path}/adapters", {"adapter": adapter["id"]}), 400, "invalid_request")
        refused(await site.a.delete(path), 404, "not_found")
        refused(await site.a.get(f"{path}/logs"), 404, "not_found")
        assert found(await site.b.get(path))["id"] == pool["id"]

    async def test_one_sees_only_ones_own_there(self, site: Site) -> None:
        pool = await self.pool(site)
        mine, theirs = await site.a.adapter("mine"), await site.b.adapter("theirs")
        found(await site.a.post("/v1/adapters/mine/load", {}))
        found(await site.b.post("/v1/adapters/theirs/load", {}))
        path = f"/v1/instances/{pool['id']}"
        for answer in (
            await site.a.get(path),
            await site.a.get(f"{path}/adapters"),
            await site.a.get(f"{path}/events"),
            await site.a.get("/v1/adapters/status"),
            await site.a.get("/v1/adapters/mine/eligible-instances"),
        ):
            assert answer.status_code == 200
            assert theirs["id"] not in answer.text
            assert "theirs" not in answer.text
        (backend,) = found(await site.a.get("/v1/adapters/status"))["data"]
        assert [row["adapter_id"] for row in backend["adapters"]] == [mine["id"]]
        assert backend["used"] == 2

    async def test_what_another_pinned_is_not_evicted(self, site: Site) -> None:
        await self.pool(site)
        found(await site.admin.patch(f"/v1/admin/accounts/{site.b.who.account}", json={"tier": "reserved"}))
        for name in ("one", "two"):
            await site.b.adapter(name)
            found(await site.b.post(f"/v1/adapters/{name}/load", {"pin": True}))
        await site.a.adapter()
        refused(await site.a.post("/v1/adapters/mine/load", {}), 409, "instance_at_capacity")
        assert site.control.controller is not None

    async def test_pins_on_a_pool_are_as_many_as_the_tier_says(self, site: Site) -> None:
        await self.pool(site)
        found(await site.admin.patch(f"/v1/admin/accounts/{site.a.who.account}", json={"tier": "shared"}))
        for name in ("one", "two"):
            await site.a.adapter(name)
        for _ in range(2):  # again is no pin more
            found(await site.a.post("/v1/adapters/one/load", {"pin": True}))
        answer = await site.a.post("/v1/adapters/two/load", {"pin": True})
        refused(answer, 429, "insufficient_quota")
        assert answer.headers["x-should-retry"] == "false"
        found(await site.a.post("/v1/adapters/two/load", {}))
        refused(await site.a.post("/v1/adapters/two/load", {"pin": True}), 429, "insufficient_quota")
        own = await site.running()
        found(await site.a.post("/v1/adapters/two/load", {"pin": True, "backends": [own["id"]]}))
        found(await site.a.post("/v1/adapters/one/unload", {}))
        found(await site.a.post("/v1/adapters/two/load", {"pin": True}))

    async def test_own_instances_go_first(self, site: Site) -> None:
        await self.pool(site)
        own = await site.running()
        await site.a.adapter()
        page = found(await site.a.post("/v1/adapters/mine/load", {}))
        assert [row["instance_id"] for row in page["data"]] == [own["id"]]

    async def test_a_second_start_keeps_it_and_a_changed_one_replaces_it(self, site: Site) -> None:
        before = await self.pool(site)
        await pools.ensure(site.control)
        assert [i["id"] for i in found(await site.a.get("/v1/instances"))["data"]] == [before["id"]]
        catalogue = site.control.catalogue
        changed = (Pool("tiny", 2, max_adapters=2),)
        site.control.catalogue = type(catalogue)(catalogue.regions, catalogue.models, changed, ())
        await pools.ensure(site.control)
        (after,) = found(await site.a.get("/v1/instances"))["data"]
        assert after["id"] != before["id"]


async def test_launches_of_two_tenants_at_once_do_not_mix(site: Site) -> None:
    await asyncio.gather(*(site.running(tenant) for tenant in (site.a, site.b, site.a, site.b)))
    one, two = [found(await t.get("/v1/instances"))["data"] for t in (site.a, site.b)]
    assert len(one) == len(two) == 2
    assert not {i["id"] for i in one} & {i["id"] for i in two}
