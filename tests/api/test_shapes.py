"""Every error comes in OpenAI's shape, whoever raised it; the description is whole."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pillion.api.limits import MAX_BODY
from pillion.core.errors import UnavailableError
from tests.api.site import Site, found, refused

WITHOUT_A_KEY = {
    "/healthz",
    "/v1/auth/login",
    "/v1/auth/oidc",
    "/v1/auth/oidc/callback",
    "/v1/invites/accept",
}


class TestErrors:
    async def test_no_route(self, site: Site) -> None:
        for path in ("/", "/v1", "/v1/nothing", "/v1/adapters/x/y/z", "/v1/adapters/", "/v1/instances/1/"):
            refused(await site.a.get(path), 404, "not_found")

    @pytest.mark.parametrize(
        ("method", "path"), [("PUT", "/v1/adapters"), ("DELETE", "/v1/account"), ("POST", "/healthz")]
    )
    async def test_no_such_method(self, site: Site, method: str, path: str) -> None:
        answer = await site.a.manage.request(method, path)
        refused(answer, 405, "invalid_request")
        methods = {"/v1/adapters": "GET, POST", "/v1/account": "GET", "/healthz": "GET"}
        assert answer.headers["allow"] == methods[path]

    @pytest.mark.parametrize("id", ["x", "1.5", "9" * 5000, "-", "0x1", "%00"])
    async def test_an_id_that_is_no_number(self, site: Site, id: str) -> None:
        refused(await site.a.get(f"/v1/instances/{id}"), 400, "invalid_request")

    @pytest.mark.parametrize("id", [0, -1, 2**53, 2**63, 2**64, 10**30])
    async def test_a_number_that_is_no_id(self, site: Site, id: int) -> None:
        refused(await site.a.get(f"/v1/instances/{id}"), 404, "not_found")
        refused(await site.a.post(f"/v1/instances/{id}/adapters", {"adapter": "x"}), 404, "not_found")

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"null",
            b"[]",
            b'"x"',
            b"\xff\xfe",
            b"{'model': 'tiny'}",
            b'{"model": NaN}',
            b'{"model": "tiny", "gpu_count": Infinity}',
            b'{"model": "tiny", "\\ud800": 1}',
            b'{"model": "\\ud800"}',
            b'{"model": "\\u0000"}',
            b'{"model": ' + b"9" * 5000 + b"}",
            b"[" * 100_000,
            b'{"a":' * 20_000,
        ],
    )
    async def test_bodies_that_are_no_request(self, site: Site, body: bytes) -> None:
        headers = {"content-type": "application/json"}
        answer = await site.a.manage.post("/v1/instances", content=body, headers=headers)
        assert answer.status_code in (400, 404), answer.text
        refused(answer, answer.status_code, answer.json()["error"]["code"])
        assert len(answer.content) < 5000

    async def test_json_that_is_broken_names_no_field(self, site: Site) -> None:
        answer = await site.a.manage.post(
            "/v1/instances", content=b'{"model": ', headers={"content-type": "application/json"}
        )
        assert refused(answer, 400, "invalid_request")["param"] is None

    async def test_every_mistake_is_named(self, site: Site) -> None:
        error = refused(
            await site.a.post("/v1/instances", {"gpu_count": 0, "replicas": "x"}), 400, "invalid_request"
        )
        assert len(error["reasons"]) == 3

    async def test_of_very_many_mistakes_the_first_are_named(self, site: Site) -> None:
        """Also to who has no key: an answer must not be many times what was asked."""
        body = dict.fromkeys(map(str, range(60_000)), 1)
        answer = await site.nobody.post("/v1/auth/login", json=body)
        reasons = refused(answer, 400, "invalid_request")["reasons"]
        assert (len(reasons), reasons[-1]) == (51, "and 59950 more")
        assert len(answer.content) < 10_000

    async def test_a_body_that_is_too_large(self, site: Site) -> None:
        headers = {"content-type": "application/json"}
        sent = 0

        async def endless() -> Any:
            nonlocal sent
            yield b'{"model": "'
            while True:
                sent += 65536
                assert sent < 4 * MAX_BODY
                yield b"x" * 65536

        answer = await site.a.manage.post("/v1/instances", content=endless(), headers=headers)
        refused(answer, 413, "request_too_large")

    async def test_what_nobody_foresaw_tells_nothing_of_the_inside(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> Any:
            raise RuntimeError("password=hunter2")

        monkeypatch.setattr(type(site.control.db), "read", broken)
        answer = await site.nobody.get(
            "/v1/account", headers={"authorization": site.a.manage.headers["authorization"]}
        )
        refused(answer, 500, "internal_error")
        assert "hunter2" not in answer.text

    async def test_a_database_that_is_away(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(*_: Any) -> Any:
            raise UnavailableError("The database does not answer.", code="unavailable")

        for name in ("read", "transaction", "snapshot_rows"):
            monkeypatch.setattr(type(site.control.db), name, away)
        answer = await site.a.get("/v1/adapters")
        refused(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "1"


class TestModels:
    async def test_what_can_be_launched(self, site: Site) -> None:
        rows = {row["name"]: row for row in found(await site.a.get("/v1/catalog"))["data"]}
        assert set(rows) == {"tiny", "other", "plain", "embed"}
        assert (rows["embed"]["kind"], rows["embed"]["lora"], rows["tiny"]["lora"]) == (
            "embedding",
            False,
            True,
        )
        assert [row["name"] for row in found(await site.a.get("/v1/regions"))["data"]] == ["local", "far"]
        assert [row["name"] for row in found(await site.a.get("/v1/gpu-types"))["data"]] == ["cpu"]

    async def test_register_show_use_delete(self, site: Site) -> None:
        answer = await site.a.post("/v1/registered-models", {"name": "own", "source": "hf:me/model@abc"})
        assert answer.status_code == 201
        assert (answer.json()["registered"], answer.json()["region"]) == (True, None)
        assert found(await site.a.get("/v1/registered-models/own"))["source"] == "hf:me/model@abc"
        refused(
            await site.a.post("/v1/registered-models", {"name": "own", "source": "hf:me/other"}),
            409,
            "name_taken",
        )
        made = found(await site.a.post("/v1/instances", {"model": "own"}))
        refused(await site.a.delete("/v1/registered-models/own"), 409, "conflict")
        await site.a.delete(f"/v1/instances/{made['id']}")
        assert found(await site.a.delete("/v1/registered-models/own"))["deleted"] is True
        refused(await site.a.get("/v1/registered-models/own"), 404, "not_found")
        refused(await site.a.post("/v1/instances", {"model": "own"}), 404, "model_not_found")

    async def test_a_directory_under_ones_own_root_is_pinned_to_its_region(self, site: Site) -> None:
        root = site.control.settings.models_root / site.a.who.account
        (root / "m").mkdir(parents=True)
        (root / "m" / "config.json").write_text((site.world.base / "config.json").read_text())
        made = found(
            await site.a.post("/v1/registered-models", {"name": "own", "source": "path:m", "region": "far"})
        )
        assert made["region"] == "far"
        launched = found(await site.a.post("/v1/instances", {"model": "own"}))
        assert launched["regions"] == {"far": 1}
        body = {"model": "own", "regions": ["local"]}
        refused(await site.a.post("/v1/instances", body), 400, "invalid_request")
        adapter = await site.a.adapter("mine", base="own")
        assert adapter["base_model"] == "own"
        place = root / "m"
        (place / "model.safetensors").symlink_to(site.world.root)  # since it was registered
        refused(await site.a.post("/v1/instances", {"model": "own"}), 400, "invalid_request")
        refused(await site.a.delete("/v1/registered-models/own"), 409, "conflict")

    async def test_no_path_leads_out_of_ones_root(self, site: Site) -> None:
        root = site.control.settings.models_root
        mine, theirs = root / site.b.who.account, root / site.a.who.account
        for place in (mine, theirs / "m", site.world.root / "outside"):
            place.mkdir(parents=True)
            (place / "config.json").write_text("{}")
        (mine / "link").symlink_to(theirs / "m")
        (mine / "up").symlink_to(site.world.root)
        (mine / "loop").symlink_to(mine / "loop")
        (mine / "half").mkdir()
        (mine / "half" / "config.json").symlink_to(theirs / "m" / "config.json")
        messages = set()
        for path in (
            "link",
            "up/outside",
            "loop",
            "half",
            "nothing",
            "..",
            f"../{site.a.who.account}/m",
            str(theirs / "m"),
            str(site.world.root / "outside"),
            "/etc",
            "/",
            "m\0",
            "x" * 900,
        ):
            body = {"name": "own", "source": f"path:{path}"}
            error = refused(await site.b.post("/v1/registered-models", body), 400, "invalid_request")
            assert error["param"] == "source"
            messages.add(error["message"].replace(repr(path[:200]), "?"))
        assert len(messages) == 1
        assert found(await site.b.get("/v1/registered-models"))["data"] == []

    @pytest.mark.parametrize(
        "body",
        [
            {"name": "own", "source": "s3:x"},
            {"name": "own", "source": "hf:"},
            {"name": "own", "source": "hf:../../etc"},
            {"name": "own", "source": "hf:a/b/c"},
            {"name": "own", "source": "hf:a/b@../x"},
            {"name": "own", "source": "hf:a/b", "kind": "embedding"},
            {"name": "own", "source": "hf:a/b", "kind": "image"},
            {"name": "own", "source": "hf:a/b", "region": "nowhere"},
            {"name": "Own", "source": "hf:a/b"},
            {"name": "a/b", "source": "hf:a/b"},
            {"name": "own"},
        ],
    )
    async def test_models_that_cannot_be(self, site: Site, body: dict[str, Any]) -> None:
        refused(await site.a.post("/v1/registered-models", body), 400, "invalid_request")


class TestDescription:
    @pytest.fixture
    async def described(self, site: Site) -> dict[str, Any]:
        return found(await site.nobody.get("/openapi.json"))

    async def test_operations_have_ids_of_their_own_and_say_what_they_answer(
        self, described: dict[str, Any]
    ) -> None:
        ids = []
        for path, methods in described["paths"].items():
            for method, operation in methods.items():
                ids.append(operation["operationId"])
                answers = operation["responses"]
                assert {"4XX", "5XX"} <= set(answers), (method, path)
                assert "422" not in answers, "a mistake in a request is a 400 here"
                good = [answer for status, answer in answers.items() if status[0] in "23"]
                assert good
                assert all(
                    content.get("schema") for a in good for content in a.get("content", {}).values()
                ), (
                    method,
                    path,
                )
                assert path in WITHOUT_A_KEY or operation.get("security"), (method, path)
        assert len(ids) == len(set(ids))

    async def test_errors_are_described_as_they_come(self, described: dict[str, Any]) -> None:
        shape = described["components"]["schemas"]["ErrorDetail"]
        assert set(shape["required"]) == {"message", "type", "code"}

    async def test_what_the_contract_lists_is_there(self, described: dict[str, Any]) -> None:
        wanted = {
            "/v1/adapters": "get post",
            "/v1/adapters/upload": "post",
            "/v1/adapters/status": "get",
            "/v1/adapters/warmup": "post",
            "/v1/adapters/{ref}": "get patch delete",
            "/v1/adapters/{ref}/load": "post",
            "/v1/adapters/{ref}/unload": "post",
            "/v1/adapters/{ref}/deploy": "post",
            "/v1/adapters/{ref}/eligible-instances": "get",
            "/v1/adapters/{ref}/events": "get",
            "/v1/adapters/{ref}/download": "get",
            "/v1/adapters/{ref}/versions": "get",
            "/v1/instances": "get post",
            "/v1/instances/{id}": "get delete",
            "/v1/instances/{id}/logs": "get",
            "/v1/instances/{id}/events": "get",
            "/v1/instances/{id}/adapters": "get post",
            "/v1/instances/{id}/adapters/{ref}": "delete",
            "/v1/catalog": "get",
            "/v1/registered-models": "get post",
            "/v1/registered-models/{name}": "get delete",
            "/v1/regions": "get",
            "/v1/gpu-types": "get",
            "/v1/jobs": "get",
            "/v1/jobs/{id}": "get",
            "/v1/jobs/{id}/cancel": "post",
            "/v1/keys": "get post",
            "/v1/account": "get",
            "/v1/account/hf-token": "put delete",
            "/v1/admin/accounts": "get post",
            "/healthz": "get",
        }
        for path, methods in wanted.items():
            assert set(methods.split()) <= set(described["paths"].get(path, {})), path


async def test_the_internal_api_has_a_token_and_a_long_poll(site: Site) -> None:
    import httpx

    from pillion.api import internal
    from pillion.core import snapshot as wire

    app = internal.build(site.control, "secret")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://internal") as client:
        path, good = "/internal/v1/snapshot", {"authorization": "Bearer secret"}
        for bad in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": site.a.manage.headers["authorization"]},
        ):
            assert (await client.get(path, headers=bad)).status_code == 401
        for query in ("after=x", "wait=x"):
            assert (await client.get(f"{path}?{query}", headers=good)).status_code == 400
        await site.control.controller.publish()
        answer = await client.get(f"{path}?gateway=gw", headers=good)
        snapshot = wire.decode(answer.content)
        assert len(snapshot.keys) == 5
        for wait in ("0", "0.01", "-1"):
            same = await client.get(f"{path}?gateway=gw&after={snapshot.version}&wait={wait}", headers=good)
            assert (same.status_code, same.content) == (204, b"")
        waiting = asyncio.create_task(
            client.get(f"{path}?gateway=gw&after={snapshot.version}&wait=30", headers=good, timeout=30)
        )
        await site.a.adapter()
        newer = wire.decode((await waiting).content)
        assert newer.version > snapshot.version
        assert [a.name for a in newer.adapters] == ["mine"]
        assert site.control.gateways.behind(newer.version) == ["gw"]
