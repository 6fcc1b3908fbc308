"""Accounts as the operator sees, changes, suspends and deletes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pillion.core.tiers import Caps
from tests.api.people import PASSWORD, Browser, browser, invited, join
from tests.api.site import Answer, Site, found, refused
from tests.control.world import CAPS


def at(site: Site) -> str:
    return f"/v1/admin/accounts/{site.a.who.account}"


@pytest.fixture
async def owner(site: Site) -> AsyncIterator[Browser]:
    async with browser(site) as made:
        await join(site, made, site.a, "ann@example.com", "owner")
        yield made


class TestSeeing:
    async def test_what_is_used_of_the_caps(self, site: Site) -> None:
        await site.a.adapter("one")
        seen = found(await site.admin.get(at(site)))
        assert (seen["adapters"], seen["max_adapters"], seen["max_adapter_bytes"]) == (1, 200, 2_000_000)
        assert found(await site.a.get("/v1/account")) == seen
        listed = found(await site.admin.get("/v1/admin/accounts"))["data"]
        assert {row["name"]: row["adapters"] for row in listed} == {"a": 1, "b": 0, "default": 0}
        refused(await site.admin.get("/v1/admin/accounts/acc_x"), 404, "not_found")


class TestChanging:
    async def test_name_tier_and_where_it_may_run(self, site: Site) -> None:
        change = {"name": "acme", "tier": "shared", "local_only": True}
        changed = found(await site.admin.patch(at(site), json=change))
        assert {key: changed[key] for key in change} == change
        assert changed["max_adapters"] == 20
        assert found(await site.a.get("/v1/account"))["name"] == "acme"
        assert found(await site.admin.patch(at(site), json={}))["name"] == "acme"

    @pytest.mark.parametrize(
        ("change", "status", "code"),
        [
            ({"name": "b"}, 409, "name_taken"),
            ({"name": "A b"}, 400, "invalid_request"),
            ({"tier": "free"}, 400, "invalid_request"),
            ({"suspended": "yes"}, 400, "invalid_request"),
            ({"nam": "x"}, 400, "invalid_request"),
        ],
    )
    async def test_what_cannot_be(self, site: Site, change: object, status: int, code: str) -> None:
        refused(await site.admin.patch(at(site), json=change), status, code)
        refused(await site.admin.patch("/v1/admin/accounts/acc_x", json={}), 404, "not_found")
        assert found(await site.admin.get(at(site)))["name"] == "a"


class TestCaps:
    @pytest.fixture(autouse=True)
    def caps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(CAPS, "reserved", Caps(200, keys=3, members=2, instances=2, models=2))

    @staticmethod
    def full(answer: Answer, what: str) -> None:
        error = refused(answer, 429, "insufficient_quota")
        assert f"tier 'reserved' has room for {what}" in error["message"]
        assert answer.headers["x-should-retry"] == "false"

    async def test_keys(self, site: Site) -> None:
        many = [site.a.post("/v1/keys", {"name": "k"}) for _ in range(3)]
        made = await asyncio.gather(*many)  # it has two already
        assert sorted(answer.status_code for answer in made) == [201, 429, 429]
        self.full(await site.a.post("/v1/keys", {"name": "k"}), "3 keys")
        self.full(await site.admin.post(f"{at(site)}/keys", json={"name": "k"}), "3 keys")
        found(await site.b.post("/v1/keys", {"name": "k"}))
        (id,) = [answer.json()["id"] for answer in made if answer.status_code == 201]
        found(await site.a.delete(f"/v1/keys/{id}"))
        found(await site.a.post("/v1/keys", {"name": "k"}))

    async def test_instances(self, site: Site) -> None:
        ids = [found(await site.a.post("/v1/instances", {"model": "tiny"}))["id"] for _ in range(2)]
        self.full(await site.a.post("/v1/instances", {"model": "tiny"}), "2 instances that run")
        found(await site.a.delete(f"/v1/instances/{ids[0]}"))
        await site.a.adapter("one")
        launch = {"launch": {"model": "tiny", "lora": {"enabled": True}}}
        found(await site.a.post("/v1/adapters/one/deploy", launch))
        self.full(await site.a.post("/v1/adapters/one/deploy", launch), "2 instances that run")

    async def test_registered_models(self, site: Site) -> None:
        def model(name: str) -> dict[str, str]:
            return {"name": name, "source": "hf:org/repo"}

        for name in ("one", "two"):
            found(await site.a.post("/v1/registered-models", model(name)))
        self.full(await site.a.post("/v1/registered-models", model("three")), "2 registered models")
        found(await site.a.delete("/v1/registered-models/one"))
        found(await site.a.post("/v1/registered-models", model("three")))

    async def test_members_and_invites(self, site: Site, owner: Browser) -> None:
        first, second = [await invited(site.a, f"{n}@example.com") for n in ("bob", "eve")]
        self.full(await site.a.post("/v1/invites", {"email": "joe@example.com"}), "2 invites that wait")

        async def accept(invite: dict[str, str]) -> Answer:
            body = {"token": invite["token"], "name": "x", "password": PASSWORD}
            return await site.nobody.post("/v1/invites/accept", json=body)

        found(await accept(first))
        self.full(await accept(second), "2 members")
        self.full(await site.a.post("/v1/invites", {"email": "joe@example.com"}), "2 members")
        found(await site.a.post("/v1/invites", {"email": "bob@example.com"}))  # for a new password


class TestSuspending:
    async def test_every_way_in_is_shut_and_opened_again(self, site: Site, owner: Browser) -> None:
        instance = await site.running()
        changed = found(await site.admin.patch(at(site), json={"suspended": True}))
        assert changed["suspended_at"] == site.world.clock()
        refused(await site.a.get("/v1/adapters"), 403, "account_suspended")
        refused(await site.a.infer.get("/v1/account"), 403, "account_suspended")
        refused(await owner.get("/v1/account"), 403, "account_suspended")
        refused(await owner.log_in("ann@example.com"), 401, "invalid_login")
        snapshot = await site.world.snapshot(site.control)
        assert {k.suspended for k in snapshot.keys.values() if k.account == site.a.who.account} == {True}
        assert {k.suspended for k in snapshot.keys.values() if k.account != site.a.who.account} == {False}
        site.world.clock.ahead += 5
        again = found(await site.admin.patch(at(site), json={"suspended": True}))
        assert again["suspended_at"] == changed["suspended_at"]

        freed = found(await site.admin.patch(at(site), json={"suspended": False}))
        assert freed["suspended_at"] is None
        assert found(await site.a.get(f"/v1/instances/{instance['id']}"))["state"] == "running"
        found(await owner.get("/v1/account"))

    async def test_gateways_that_have_not_heard_are_named(self, site: Site) -> None:
        site.control.gateways.heard("gw-deaf", 0)
        changed = found(await site.admin.patch(at(site), json={"suspended": True}))
        assert changed["unacknowledged"] == ["gw-deaf"]

    async def test_invites_of_a_suspended_account_are_good_again_afterwards(
        self, site: Site, owner: Browser
    ) -> None:
        token = found(await owner.post("/v1/invites", {"email": "z@x.org"}))["token"]
        found(await site.admin.patch(at(site), json={"suspended": True}))
        body = {"token": token, "name": "Zoe", "password": "correct horse 7"}
        async with browser(site) as visitor:
            refused(await visitor.post("/v1/invites/accept", body), 404, "not_found")
            found(await site.admin.patch(at(site), json={"suspended": False}))
            found(await visitor.post("/v1/invites/accept", body))

    async def test_nobody_suspends_themselves(self, site: Site) -> None:
        own = found(await site.admin.get("/v1/account"))["id"]
        path = f"/v1/admin/accounts/{own}"
        refused(await site.admin.patch(path, json={"suspended": True}), 409, "conflict")
        refused(await site.admin.delete(path), 409, "conflict")


class TestDeleting:
    async def test_nothing_is_left_but_the_books(self, site: Site, owner: Browser) -> None:
        adapter = await site.a.adapter("one")
        found(await site.a.post("/v1/registered-models", {"name": "own", "source": "hf:x/y"}))
        found(await site.a.manage.put("/v1/account/hf-token", json={"token": "hf_secret"}))
        token = found(await owner.post("/v1/invites", {"email": "z@x.org"}))["token"]
        found(await site.admin.delete(at(site)))
        refused(await site.a.get("/v1/account"), 401, "invalid_api_key")
        refused(await owner.get("/v1/account"), 401, "not_logged_in")
        refused(await owner.log_in("ann@example.com"), 401, "invalid_login")
        body = {"token": token, "name": "Zoe", "password": "correct horse 7"}
        refused(await owner.post("/v1/invites/accept", body), 404, "not_found")
        for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/keys")):
            answer = await site.admin.request(method, at(site) + path, json={})
            refused(answer, 404, "not_found")
        names = [row["name"] for row in found(await site.admin.get("/v1/admin/accounts"))["data"]]
        assert names == ["b", "default"]
        snapshot = await site.world.snapshot(site.control)
        assert adapter["id"] not in {a.id for a in snapshot.adapters}
        assert site.a.who.account not in {k.account for k in snapshot.keys.values()}
        async with site.control.db.read() as tx:
            assert await tx.secrets.get(site.a.who.account, "hf-token") is None
            assert await tx.members.list(site.a.who.account) == []

    async def test_its_name_is_free(self, site: Site) -> None:
        found(await site.admin.delete(at(site)))
        made = found(await site.admin.post("/v1/admin/accounts", json={"name": "a"}))
        assert made["id"] != site.a.who.account
        found(await site.admin.delete(f"/v1/admin/accounts/{made['id']}"))

    async def test_what_still_runs_is_named_and_stays(self, site: Site) -> None:
        instance, adapter = await site.running(), await site.a.adapter("one")
        await site.attached(site.a, instance["id"], adapter)
        error = refused(await site.admin.delete(at(site)), 409, "conflict")
        assert f"instances {instance['id']}; 1 attached" in error["message"]
        assert found(await site.a.get("/v1/adapters/one"))["attachments"]
        async with site.control.db.transaction() as tx:
            await tx.jobs.create(site.b.who.account, "job_1", kind="test", subject={}, now=0.0)
        answer = await site.admin.delete(f"/v1/admin/accounts/{site.b.who.account}")
        assert "jobs job_1" in refused(answer, 409, "conflict")["message"]
