"""Who may do what: keys, scopes, the first start."""

from __future__ import annotations

import httpx
import pytest

from pillion.control import accounts, keys
from pillion.control.context import Control
from pillion.core import keys as key_format
from pillion.core.errors import InvalidApiKeyError
from tests.api.site import Site, found, refused
from tests.control.world import World


def with_key(site: Site, key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def accounts_of(control: Control) -> int:
    async with control.db.read() as tx:
        return await tx.accounts.count()


class TestFirstStart:
    @pytest.fixture
    async def control(self, world: World):
        async with world.control(run=False) as made:
            yield made

    async def test_it_makes_an_account_and_a_key_that_works(self, control: Control) -> None:
        kept: list[str] = []
        key = await accounts.bootstrap(control, None, kept.append)
        assert kept == [key]
        who = await keys.authenticate(control, kept[0])
        assert who.scopes == {"inference", "manage", "admin"}
        assert (await accounts.get(control, who.account)).name == "default"

    async def test_the_second_start_keeps_what_is_there(self, control: Control) -> None:
        key = await accounts.bootstrap(control, None, lambda _: None)
        assert await accounts.bootstrap(control, None, lambda _: pytest.fail("kept another")) is None
        assert key is not None
        await keys.authenticate(control, key)

    async def test_the_key_can_be_preset(self, control: Control) -> None:
        preset = key_format.mint(control.choice).text
        assert await accounts.bootstrap(control, preset, lambda _: None) == preset
        await keys.authenticate(control, preset)

    @pytest.mark.parametrize("preset", ["x", "pil_" + "a" * 50])
    async def test_a_preset_that_is_no_key_leaves_nothing_behind(self, control: Control, preset: str) -> None:
        with pytest.raises(InvalidApiKeyError, match="PILLION_ADMIN_KEY"):
            await accounts.bootstrap(control, preset, lambda _: None)
        assert await accounts_of(control) == 0
        assert await accounts.bootstrap(control, None, lambda _: None)

    async def test_a_start_that_cannot_keep_the_key_is_a_first_start_again(self, control: Control) -> None:
        def full(_: str) -> None:
            raise OSError("no space left")

        with pytest.raises(OSError, match="no space"):
            await accounts.bootstrap(control, None, full)
        assert await accounts_of(control) == 0
        assert await accounts.bootstrap(control, None, lambda _: None)


class TestAuthentication:
    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer x",
            "Bearer pil_",
            "Basic cGlsOmxpb24=",
            "Bearer pil_" + "a" * 50,
            "Bearer " + "x" * 10_000,
            "Bearer é",
        ],
    )
    async def test_without_a_valid_key_nothing_answers(self, site: Site, header: str | None) -> None:
        fields = {} if header is None else {"authorization": header.encode()}
        for path in ("/v1/adapters", "/v1/instances", "/v1/account", "/v1/admin/accounts"):
            refused(await site.nobody.get(path, headers=fields), 401, "invalid_api_key")

    async def test_unknown_revoked_and_misspelt_keys_get_one_answer(self, site: Site) -> None:
        made = found(await site.a.post("/v1/keys", {"name": "k"}))
        good = with_key(site, made["key"])
        assert (await site.nobody.get("/v1/account", headers=good)).status_code == 200
        await site.a.delete(f"/v1/keys/{made['id']}")
        unknown = key_format.mint(site.control.choice).text
        twin = "pil_" + made["key"][4:16] + unknown[16:48]
        twin += key_format._checksum(twin[4:])  # the same lookup id, another secret
        answers = [
            await site.nobody.get("/v1/account", headers=with_key(site, key))
            for key in (made["key"], unknown, twin, made["key"][:-1], made["key"] + "x")
        ]
        assert {(a.status_code, a.content) for a in answers} == {(401, answers[0].content)}

    async def test_health_and_the_description_need_no_key(self, site: Site) -> None:
        assert found(await site.nobody.get("/healthz")) == {"status": "ok"}
        assert found(await site.nobody.get("/openapi.json"))["info"]["title"] == "Pillion"


WRITES = [
    ("POST", "/v1/adapters"),
    ("POST", "/v1/adapters/upload"),
    ("POST", "/v1/adapters/warmup"),
    ("PATCH", "/v1/adapters/x"),
    ("DELETE", "/v1/adapters/x"),
    ("POST", "/v1/adapters/x/deploy"),
    ("POST", "/v1/adapters/x/move"),
    ("POST", "/v1/adapters/x/load"),
    ("POST", "/v1/adapters/x/unload"),
    ("GET", "/v1/adapters/x/download"),
    ("POST", "/v1/adapters/x/versions"),
    ("POST", "/v1/adapters/x/versions/1/live"),
    ("POST", "/v1/adapters/x/rollback"),
    ("PUT", "/v1/adapters/x/canary"),
    ("DELETE", "/v1/adapters/x/canary"),
    ("DELETE", "/v1/sessions/x"),
    ("POST", "/v1/instances"),
    ("DELETE", "/v1/instances/1"),
    ("GET", "/v1/instances/1/logs"),
    ("POST", "/v1/instances/1/adapters"),
    ("DELETE", "/v1/instances/1/adapters/x"),
    ("POST", "/v1/registered-models"),
    ("DELETE", "/v1/registered-models/x"),
    ("POST", "/v1/jobs/x/cancel"),
    ("GET", "/v1/keys"),
    ("POST", "/v1/keys"),
    ("GET", "/v1/keys/x"),
    ("PATCH", "/v1/keys/x"),
    ("DELETE", "/v1/keys/x"),
    ("GET", "/v1/members"),
    ("PATCH", "/v1/members/x"),
    ("DELETE", "/v1/members/x"),
    ("GET", "/v1/invites"),
    ("POST", "/v1/invites"),
    ("DELETE", "/v1/invites/x"),
    ("PUT", "/v1/account/hf-token"),
    ("DELETE", "/v1/account/hf-token"),
]
# What says who one is, and is for anybody.
OPEN = [
    ("POST", "/v1/auth/login"),
    ("POST", "/v1/auth/logout"),
    ("PUT", "/v1/auth/password"),
    ("POST", "/v1/invites/accept"),
]
READS = [
    "/v1/adapters",
    "/v1/adapters/status",
    "/v1/adapters/x",
    "/v1/adapters/x/versions",
    "/v1/adapters/x/events",
    "/v1/adapters/x/explain",
    "/v1/adapters/x/eligible-instances",
    "/v1/instances",
    "/v1/instances/1",
    "/v1/instances/1/events",
    "/v1/instances/1/adapters",
    "/v1/jobs",
    "/v1/jobs/x",
    "/v1/registered-models",
    "/v1/registered-models/x",
    "/v1/usage/summary",
    "/v1/usage/events",
    "/v1/billing/snapshot",
    "/v1/billing/transactions",
]
OPERATOR = [
    ("GET", "/v1/admin/accounts"),
    ("POST", "/v1/admin/accounts"),
    ("GET", "/v1/admin/accounts/x"),
    ("PATCH", "/v1/admin/accounts/x"),
    ("DELETE", "/v1/admin/accounts/x"),
    ("POST", "/v1/admin/accounts/x/keys"),
    ("POST", "/v1/admin/accounts/x/invites"),
    ("GET", "/v1/admin/gateways"),
    ("POST", "/v1/admin/gateways"),
    ("DELETE", "/v1/admin/gateways/x"),
    ("GET", "/v1/admin/metrics"),
    ("GET", "/v1/admin/prices"),
    ("POST", "/v1/admin/prices"),
    ("GET", "/v1/admin/credits"),
    ("POST", "/v1/admin/credits"),
]


class TestScopes:
    @pytest.mark.parametrize(("method", "path"), [*WRITES, *OPERATOR])
    async def test_a_key_that_can_only_infer_changes_nothing(
        self, site: Site, method: str, path: str
    ) -> None:
        refused(await site.a.infer.request(method, path), 403, "insufficient_scope")

    @pytest.mark.parametrize("path", READS)
    async def test_a_key_that_can_only_infer_reads_nothing_of_the_account(
        self, site: Site, path: str
    ) -> None:
        refused(await site.a.infer.get(path), 403, "insufficient_scope")

    @pytest.mark.parametrize("path", ["/v1/account", "/v1/catalog", "/v1/regions", "/v1/gpu-types"])
    async def test_any_key_may_ask_whose_it_is_and_what_there_is(self, site: Site, path: str) -> None:
        found(await site.a.infer.get(path))

    @pytest.mark.parametrize(("method", "path"), OPERATOR)
    async def test_a_tenant_is_no_operator(self, site: Site, method: str, path: str) -> None:
        refused(await site.a.manage.request(method, path), 403, "insufficient_scope")

    async def test_every_route_that_changes_something_is_in_the_list(self, site: Site) -> None:
        listed = {
            (method, path.replace("/x", "/{}").replace("/1", "/{}"))
            for method, path in [*WRITES, *OPERATOR, *OPEN]
        }
        described = found(await site.nobody.get("/openapi.json"))["paths"]
        for path, methods in described.items():
            form = "/".join("{}" if part.startswith("{") else part for part in path.split("/"))
            for method in methods:
                assert method == "get" or (method.upper(), form) in listed, (method, path)

    async def test_nobody_hands_out_a_scope_they_do_not_have(self, site: Site) -> None:
        refused(await site.a.post("/v1/keys", {"scopes": ["admin"]}), 403, "insufficient_scope")
        refused(await site.a.post("/v1/keys", {"scopes": ["inference", "admin"]}), 403, "insufficient_scope")
        made = found(await site.a.post("/v1/keys", {"scopes": ["inference", "inference"]}))
        assert made["scopes"] == ["inference"]
        assert len(found(await site.a.get("/v1/keys"))["data"]) == 3

    async def test_the_operator_may_all(self, site: Site) -> None:
        assert found(await site.admin.get("/v1/keys"))["data"]
        assert found(await site.admin.get("/v1/admin/accounts"))["data"]


class TestKeys:
    async def test_a_key_is_shown_once(self, site: Site) -> None:
        answer = await site.a.post("/v1/keys", {"name": "ci", "scopes": ["manage"]})
        assert answer.status_code == 201
        made = answer.json()
        listed = await site.a.get("/v1/keys")
        assert made["key"] not in listed.text
        assert made["key"][16:] not in listed.text
        row = next(row for row in listed.json()["data"] if row["id"] == made["id"])
        assert (row["name"], row["scopes"], row["key"], row["revoked_at"]) == ("ci", ["manage"], None, None)

    async def test_revoking_is_for_good_and_again_is_no_error(self, site: Site) -> None:
        made = found(await site.a.post("/v1/keys", {}))
        first = found(await site.a.delete(f"/v1/keys/{made['id']}"))
        assert (first["unacknowledged"], first["key"]) == ([], None)
        assert found(await site.a.delete(f"/v1/keys/{made['id']}"))["revoked_at"] == first["revoked_at"]

    async def test_a_revocation_names_the_gateways_that_did_not_hear_of_it(self, site: Site) -> None:
        site.control.gateways.heard("gw-deaf", 0)
        made = found(await site.a.post("/v1/keys", {}))
        assert found(await site.a.delete(f"/v1/keys/{made['id']}"))["unacknowledged"] == ["gw-deaf"]

    async def test_another_tenants_key_is_unknown(self, site: Site) -> None:
        made = found(await site.a.post("/v1/keys", {}))
        foreign = await site.b.delete(f"/v1/keys/{made['id']}")
        refused(foreign, 404, "not_found")
        assert (await site.nobody.get("/v1/account", headers=with_key(site, made["key"]))).status_code == 200

    @pytest.mark.parametrize(
        "body",
        [
            {"scopes": []},
            {"scopes": ["root"]},
            {"scopes": "manage"},
            {"name": "x" * 101},
            {"nam": "x"},
            {"allow": ["x"]},
            {"allow": ["10.1.2.3/8"]},
            {"allow": ["1.1.1.1"] * 101},
            {"allow": "1.1.1.1"},
            {"spend_limit": -1},
            {"expires_at": 5},
            {"expires_at": 1e12},
            [],
            5,
            None,
        ],
    )
    async def test_what_is_no_key_request(self, site: Site, body: object) -> None:
        refused(await site.a.post("/v1/keys", body), 400, "invalid_request")

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
    async def test_no_key_lasts_until_what_is_no_time(self, site: Site, number: str) -> None:
        body = f'{{"expires_at": {number}}}'
        answer = await site.a.manage.post(
            "/v1/keys", content=body, headers={"content-type": "application/json"}
        )
        assert refused(answer, 400, "invalid_request")["param"] == "expires_at"

    async def test_terms_are_kept_and_change(self, site: Site) -> None:
        terms = {"allow": ["192.0.2.7", "10.0.0.0/8", "10.0.0.0/8"], "spend_limit": 5_000_000}
        made = found(await site.a.post("/v1/keys", {"name": "k", **terms, "requests_per_minute": 5}))
        assert made["allow"] == ["192.0.2.7/32", "10.0.0.0/8"]
        path = f"/v1/keys/{made['id']}"
        changed = found(await site.a.patch(path, {"requests_per_minute": None, "allow": ["::1"]}))
        assert (changed["allow"], changed["requests_per_minute"], changed["key"]) == (["::1/128"], None, None)
        assert (changed["name"], changed["spend_limit"]) == ("k", 5_000_000)
        assert found(await site.a.get(path)) == changed
        assert found(await site.a.patch(path, {"allow": []}))["allow"] == []
        assert found(await site.a.patch(path, {"name": "other"}))["name"] == "other"
        for bad in (
            {"allow": ["x"]},
            {"expires_at": 1.0},
            {"scopes": ["manage"]},
            {"requests_per_minute": 0},
        ):
            refused(await site.a.patch(path, bad), 400, "invalid_request")
        refused(await site.b.get(path), 404, "not_found")
        refused(await site.b.patch(path, {"name": "stolen"}), 404, "not_found")
        found(await site.a.delete(path))
        refused(await site.a.patch(path, {"name": "late"}), 404, "not_found")

    async def test_a_key_is_good_from_its_networks_alone(self, site: Site) -> None:
        body = {"scopes": ["manage"], "allow": ["192.0.2.0/24", "2001:db8::/32"]}
        made = with_key(site, found(await site.a.post("/v1/keys", body))["key"])

        async def ask(*forwarded: str) -> httpx.Response:
            fields = made | ({"x-forwarded-for": ", ".join(forwarded)} if forwarded else {})
            return await site.nobody.get("/v1/adapters", headers=fields)

        found(await ask("192.0.2.9"))
        found(await ask("2001:db8::5"))
        found(await ask("198.51.100.1", "192.0.2.9"))
        error = refused(await ask("192.0.2.9", "198.51.100.1"), 403, "address_not_allowed")
        assert "198.51.100.1" in error["message"]
        refused(await ask(), 403, "address_not_allowed")
        refused(await ask("nonsense"), 403, "address_not_allowed")

    async def test_gateways_hear_of_terms(self, site: Site) -> None:
        made = found(await site.a.post("/v1/keys", {"allow": ["10.0.0.0/8"]}))
        snapshot = await site.world.snapshot(site.control)
        key = next(key for key in snapshot.keys.values() if key.id == made["id"])
        assert (key.allow, key.suspended) == (("10.0.0.0/8",), False)


class TestAccounts:
    async def test_the_operator_makes_an_account_and_a_key_for_it(self, site: Site) -> None:
        made = found(await site.admin.post("/v1/admin/accounts", json={"name": "acme", "tier": "reserved"}))
        key = found(
            await site.admin.post(f"/v1/admin/accounts/{made['id']}/keys", json={"scopes": ["manage"]})
        )
        seen = found(await site.nobody.get("/v1/account", headers=with_key(site, key["key"])))
        assert (seen["id"], seen["name"], seen["tier"]) == (made["id"], "acme", "reserved")

    async def test_names_of_accounts(self, site: Site) -> None:
        refused(await site.admin.post("/v1/admin/accounts", json={"name": "a"}), 409, "name_taken")
        refused(await site.admin.post("/v1/admin/accounts", json={"name": "A b"}), 400, "invalid_request")
        refused(
            await site.admin.post("/v1/admin/accounts", json={"name": "c", "tier": "free"}),
            400,
            "invalid_request",
        )
        refused(await site.admin.post("/v1/admin/accounts/acc_x/keys", json={}), 404, "not_found")

    async def test_pages(self, site: Site) -> None:
        names: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = found(await site.admin.get("/v1/admin/accounts", params={"limit": "1", **after}))
            names += [row["name"] for row in page["data"]]
            if not page["has_more"]:
                break
            after = {"after": page["next"]}
        assert names == ["a", "b", "default"]

    async def test_the_hugging_face_token_is_kept_encrypted_and_never_shown(self, site: Site) -> None:
        found(await site.a.manage.put("/v1/account/hf-token", json={"token": "hf_verysecret"}))
        assert await accounts.hf_token(site.control, site.a.who.account) == "hf_verysecret"
        assert await accounts.hf_token(site.control, site.b.who.account) is None
        for path in sorted(site.world.root.glob("pillion.db*")):
            assert b"hf_verysecret" not in path.read_bytes()
        assert found(await site.a.delete("/v1/account/hf-token"))["deleted"] is True
        assert found(await site.a.delete("/v1/account/hf-token"))["deleted"] is False


async def test_keys_are_kept_as_digests_only(site: Site) -> None:
    made = found(await site.a.post("/v1/keys", {}))
    for path in sorted(site.world.root.glob("pillion.db*")):
        assert made["key"][16:48].encode() not in path.read_bytes()


async def test_secrets_are_not_logged(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    made = found(await site.a.post("/v1/keys", {}))
    await site.a.manage.put("/v1/account/hf-token", json={"token": "hf_verysecret"})
    await site.nobody.get("/v1/account", headers=with_key(site, made["key"][:-1]))
    await site.a.manage.put("/v1/account/hf-token", json={"token": "hf_verysecret", "more": 1})
    said = "".join(capsys.readouterr())
    assert made["key"][:-1] not in said
    assert "hf_verysecret" not in said
