"""The request path against fake engines, through the real server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from pillion.core import keys
from pillion.core.snapshot import Model
from tests.gateway.conftest import Town
from tests.gateway.world import (
    ACME,
    BASE,
    OTHER,
    adapter_id,
    make_adapter,
    make_instance,
    make_key,
    make_replica,
)


async def test_adapter_is_called_by_its_engine_name_and_echoed_as_asked(town: Town) -> None:
    await town.only(town.a)
    for model in ("ft1:1", f"{BASE}:tune-1"):
        status, headers, body = await town.site.chat(town.key, model)
        assert (status, body["model"], body["choices"][0]["message"]["content"]) == (200, model, "hello")
        assert town.a.body["model"] == town.adapter.engine_name
    assert headers["x-pillion-adapter-id"] == adapter_id(1)
    assert headers["x-pillion-adapter-version"] == "3"
    assert headers["x-pillion-instance"] == "1"
    assert headers["x-pillion-replica"] == "a"
    assert headers["x-pillion-region"] == "local"


async def test_base_has_no_adapter_headers(town: Town) -> None:
    status, headers, body = await town.site.chat(town.key, BASE)
    assert (status, body["model"]) == (200, BASE)
    assert "x-pillion-adapter-id" not in headers
    assert {e.body["model"] for e in (town.a, town.b) if e.asked} == {f"served/{BASE}"}


@pytest.mark.parametrize("name", ["x_pillion_adapter_id", "x_hybrie_adapter_id"])
async def test_header_picks_the_adapter(town: Town, name: str) -> None:
    await town.only(town.a)
    status, headers, body = await town.site.chat(town.key, BASE, headers={name: "tune-1"})
    assert (status, body["model"], headers["x-pillion-adapter-id"]) == (200, BASE, adapter_id(1))
    assert town.a.body["model"] == town.adapter.engine_name


@pytest.mark.parametrize(
    ("model", "headers", "status", "code"),
    [
        ("no-such", {}, 404, "model_not_found"),
        (BASE, {"x_pillion_adapter_id": "nobody"}, 404, "model_not_found"),
        (BASE, {"x_pillion_adapter_id": "1", "x_hybrie_adapter_id": "2"}, 400, "ambiguous_ref"),
        (BASE, {"x_pillion_execution_mode": "cloud"}, 400, "invalid_request"),
        (BASE, {"x_hybrie_cloud_provider": "acme"}, 400, "invalid_request"),
        (BASE, {"x_pillion_execution_mode": "sideways"}, 400, "invalid_request"),
        (BASE, {"x_pillion_execution_mode": "local"}, 200, None),
    ],
)
async def test_header_rules(
    town: Town, model: str, headers: dict[str, str], status: int, code: str | None
) -> None:
    got, fields, body = await town.site.chat(town.key, model, headers=headers)
    assert (got, body.get("error", {}).get("code")) == (status, code)
    assert fields["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("authorization", "status", "code"),
    [
        (None, 401, "invalid_api_key"),
        ("Bearer nonsense", 401, "invalid_api_key"),
        ("Basic cGlsXw==", 401, "invalid_api_key"),
        ("Bearer " + keys.mint(lambda letters: letters[7]).text, 401, "invalid_api_key"),
        ("manage", 403, "insufficient_scope"),
        ("foreign-secret", 401, "invalid_api_key"),
    ],
)
async def test_keys(town: Town, authorization: str | None, status: int, code: str) -> None:
    manage, manage_entry = make_key(ACME, "manage")
    await town.publish(town.entry, manage_entry, town.adapter, town.instance(town.a))
    # The same lookup id with another secret, and a right checksum: only the digest tells.
    forged = keys.parse(manage)
    assert forged is not None
    secret = iter(forged.lookup + "0" * keys.SECRET_LENGTH)
    headers = {
        "manage": f"Bearer {manage}",
        "foreign-secret": f"Bearer {keys.mint(lambda _: next(secret)).text}",
    }
    fields = {} if authorization is None else {"authorization": headers.get(authorization, authorization)}
    async with town.site.client.post(
        f"{town.site.url}/v1/chat/completions", json={}, headers=fields
    ) as answer:
        body = await answer.json()
        assert (answer.status, body["error"]["code"]) == (status, code)
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert answer.headers["x-request-id"]
        assert ("www-authenticate" in answer.headers) == (status == 401)
    assert not town.a.asked


async def test_request_id_is_echoed_but_never_sent_to_the_engine(town: Town) -> None:
    await town.only(town.a)
    _, headers, _ = await town.site.chat(town.key, BASE, headers={"x_request_id": "my-trace.1"})
    assert headers["x-request-id"] == "my-trace.1"
    assert town.a.headers["x-request-id"].startswith("req_")
    _, headers, _ = await town.site.chat(town.key, BASE, headers={"x_request_id": "a b" * 100})
    assert headers["x-request-id"].startswith("req_")


async def test_engine_gets_its_own_key_and_no_more_of_the_clients_headers_than_it_needs(town: Town) -> None:
    await town.only(town.a)
    headers = {
        "cookie": "session=1",
        "x_api_key": "k",
        "x_data_parallel_rank": "3",
        "traceparent": "00-1-2-01",
    }
    await town.site.chat(town.key, BASE, headers=headers)
    got = {name.lower(): value for name, value in town.a.headers.items()}
    assert got["authorization"] == "Bearer infer-a"
    assert got["traceparent"] == "00-1-2-01"
    assert not got.keys() & {"cookie", "x-api-key", "x-data-parallel-rank", "x-forwarded-for"}


async def test_only_allowed_fields_reach_the_engine(town: Town) -> None:
    await town.only(town.a)
    status, _, _ = await town.site.chat(
        town.key, BASE, top_k=5, temperature=0.5, priority=-9, request_id="x", rid=["y"]
    )
    assert status == 200
    assert set(town.a.body) == {"model", "messages", "top_k", "temperature"}


@pytest.mark.parametrize(
    "field", ["lora_request", "lora_path", "kv_transfer_params", "chat_template", "prompt_embeds"]
)
async def test_dangerous_fields_are_refused(town: Town, field: str) -> None:
    status, _, body = await town.site.chat(town.key, BASE, **{field: {"a": 1}})
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, "invalid_request", field)
    assert not town.a.asked


async def test_a_repeated_model_smuggles_nothing(town: Town) -> None:
    await town.only(town.a)
    raw = b'{"model":"adp_evil@00","messages":[],"model":"%s","\\u006dodel":"ft1:1"}' % BASE.encode()
    headers = {"authorization": f"Bearer {town.key}", "content-type": "application/json"}
    async with town.site.client.post(
        f"{town.site.url}/v1/chat/completions", data=raw, headers=headers
    ) as answer:
        assert (await answer.json())["model"] == "ft1:1"
    request, body = town.a.asked[-1]
    assert body["model"] == town.adapter.engine_name
    assert (await request.read()).count(b"model") == 1


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"", 400, "invalid_request"),
        (b"{", 400, "invalid_request"),
        (b"[]", 400, "invalid_request"),
        (b"\xff\xfe", 400, "invalid_request"),
        (b'{"model": 7}', 400, "invalid_request"),
        (b'{"model": ""}', 400, "invalid_request"),
        (b'{"messages": []}', 400, "invalid_request"),
        (b'{"model": "\\ud800"}', 400, "invalid_request"),
        (b"[" * 200_000, 400, "invalid_request"),
        (b" " * (33 * 2**20), 413, "request_too_large"),
    ],
)
async def test_bad_bodies(town: Town, raw: bytes, status: int, code: str) -> None:
    headers = {"authorization": f"Bearer {town.key}"}
    async with town.site.client.post(
        f"{town.site.url}/v1/chat/completions", data=raw, headers=headers
    ) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)


async def test_oversized_chunked_body_is_refused_on_the_way(town: Town) -> None:
    async def endless() -> Any:
        while True:
            yield b" " * 2**20

    headers = {"authorization": f"Bearer {town.key}"}
    async with town.site.client.post(
        f"{town.site.url}/v1/chat/completions", data=endless(), headers=headers
    ) as answer:
        assert answer.status == 413


async def test_salt_on_pools_only_and_one_per_account(town: Town) -> None:
    theirs, their_entry = make_key(OTHER)
    own = town.instance(town.a)
    pool = make_instance(7, make_replica("pool", url=town.b.url), account=None, model="pooled")
    await town.publish(town.entry, their_entry, town.adapter, own, pool, Model("pooled", None, "chat", True))
    await town.site.chat(town.key, BASE, cache_salt="mine")
    assert town.a.body["cache_salt"] == "mine"
    salts = []
    for key, extra in ((town.key, {}), (town.key, {}), (theirs, {}), (town.key, {"cache_salt": salts})):
        extra = {"cache_salt": salts[0]} if extra else {}
        await town.site.chat(key, "pooled", **extra)
        salts.append(town.b.body["cache_salt"])
    assert salts[0] == salts[1]
    assert len(set(salts)) == 3


async def test_nobody_fills_a_pool_with_one_request(town: Town) -> None:
    pool = make_instance(7, make_replica("pool", url=town.b.url), account=None, model="pooled")
    await town.publish(
        town.entry, town.adapter, town.instance(town.a), pool, Model("pooled", None, "chat", True)
    )
    for model, n, status in ((BASE, 1000, 200), ("pooled", 128, 200), ("pooled", 129, 400)):
        got, _, body = await town.site.chat(town.key, model, n=n)
        assert got == status
    assert body["error"]["param"] == "n"


@pytest.mark.parametrize(
    ("raw", "allowed"),
    [
        ("data:image/png;base64,AAAA", True),
        ("DATA:image/png;base64,AAAA", True),
        ("http://169.254.169.254/latest", False),
        ("HTTPS://example.org/cat.png", False),
        ("file:///etc/passwd", False),
        (" http://example.org", False),
    ],
)
async def test_media_by_url_is_off(town: Town, raw: str, allowed: bool) -> None:
    for part in ({"type": "image_url", "image_url": {"url": raw}}, {"type": "input_image", "image_url": raw}):
        document = {"model": BASE, "messages": [{"role": "user", "content": [part]}]}
        async with town.site.post("/v1/chat/completions", town.key, document) as answer:
            assert answer.status == (200 if allowed else 400)


async def test_responses_are_stateless(town: Town) -> None:
    await town.only(town.a)
    async with town.site.post(
        "/v1/responses", town.key, {"model": BASE, "input": "hi", "store": True}
    ) as answer:
        assert answer.status == 200
    assert town.a.body["store"] is False
    for extra in (
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"background": True},
        {"tools": [{"type": "mcp", "server_url": "http://169.254.169.254"}]},
    ):
        async with town.site.post(
            "/v1/responses", town.key, {"model": BASE, "input": "hi", **extra}
        ) as answer:
            assert answer.status == 400


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/completions", "/v1/score", "/v1/audio/speech"])
async def test_other_paths_are_relayed_by_model(town: Town, path: str) -> None:
    await town.only(town.a)
    async with town.site.post(path, town.key, {"model": BASE, "input": "x"}) as answer:
        assert (answer.status, (await answer.json())["model"]) == (200, BASE)
    assert town.a.asked[-1][0].path == path


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/../pillion/v1/adapters",
        "/v1/chat/../../pillion/v1/adapters",
        "/v1/%2e%2e/pillion/v1/adapters",
        "/pillion/v1/adapters",
        "/v1/adapters",
        "/v1/fine_tuning/jobs",
    ],
)
async def test_engine_admin_is_out_of_reach(town: Town, path: str) -> None:
    host, port = town.site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"model": BASE}).encode()
    writer.write(
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {town.key}\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"path": path, "method": "POST"}
    assert not town.a.asked
    assert not town.b.asked


async def test_engine_errors_come_in_openais_shape_without_its_names(town: Town) -> None:
    name = town.adapter.engine_name

    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        text = f"{name} at /opt/engine/models/x.py, see http://127.0.0.1:9000/x: max_tokens is too large"
        return web.json_response(
            {"error": {"message": text, "type": "Bad", "param": "max_tokens", "code": 400}}, status=400
        )

    town.a.behave = refuse
    await town.only(town.a)
    status, headers, body = await town.site.chat(town.key, "ft1:1")
    assert status == 400
    assert body["error"] == {
        "message": "ft1:1 at [path], see [address] max_tokens is too large",
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": "invalid_request",
    }
    assert headers["x-pillion-replica"] == "a"


@pytest.mark.parametrize(
    ("engine", "raw", "status", "code"),
    [
        (500, b"Traceback in /opt/secret.py", 500, "engine_error"),
        (404, b'{"detail":"Not Found"}', 404, "not_found"),
        (422, b'{"detail":[{"msg":"bad n"}]}', 400, "invalid_request"),
        (429, b"", 503, "no_healthy_replica"),
        (503, b"", 503, "no_healthy_replica"),
        (401, b"", 503, "no_healthy_replica"),
        (413, b"", 413, "request_too_large"),
        (302, b"", 500, "engine_error"),
    ],
)
async def test_engine_statuses(town: Town, engine: int, raw: bytes, status: int, code: str) -> None:
    async def fail(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=engine, body=raw, headers={"server": "engine/1", "set-cookie": "a=b"})

    town.a.behave = fail
    await town.only(town.a)
    async with town.site.post("/v1/chat/completions", town.key, {"model": BASE}) as answer:
        text = await answer.read()
        assert answer.status == status
        assert b"secret" not in text
        assert "server" not in answer.headers
        assert "set-cookie" not in answer.headers
        assert json.loads(text)["error"]["code"] == code


async def test_bytes_of_other_kinds_pass_as_they_are(town: Town) -> None:
    async def speak(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(body=bytes(range(256)) * 100, content_type="audio/wav")

    town.a.behave = speak
    await town.only(town.a)
    async with town.site.post("/v1/audio/speech", town.key, {"model": BASE}) as answer:
        assert await answer.read() == bytes(range(256)) * 100
        assert answer.headers["content-length"] == "25600"


async def test_models(town: Town) -> None:
    headers = {"authorization": f"Bearer {town.key}"}
    async with town.site.client.get(f"{town.site.url}/v1/models", headers=headers) as answer:
        listed = await answer.json()
    assert [m["id"] for m in listed["data"]] == [BASE, f"{BASE}:1", "ft1:1", f"{BASE}:tune-1"]
    async with town.site.client.get(f"{town.site.url}/v1/models/ft1%3A1", headers=headers) as answer:
        assert (await answer.json())["parent"] == BASE
    async with town.site.client.get(f"{town.site.url}/v1/models/nope", headers=headers) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "model_not_found")
    async with town.site.client.get(f"{town.site.url}/v1/models") as answer:
        assert answer.status == 401


async def test_a_replica_that_is_overloaded_is_spared(town: Town) -> None:
    busy, go = asyncio.Semaphore(0), asyncio.Event()

    async def wait(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        busy.release()
        await go.wait()
        return web.json_response({})

    for engine in (town.a, town.b):
        engine.behave = wait
    asks = []
    for _ in range(3):
        asks.append(asyncio.ensure_future(town.site.chat(town.key, BASE)))
        await asyncio.wait_for(busy.acquire(), 10)
    assert sorted([len(town.a.asked), len(town.b.asked)]) == [1, 2]
    go.set()
    await asyncio.gather(*asks)


async def test_expiry_is_kept_by_the_gateway_itself(town: Town) -> None:
    await town.publish(town.entry, make_adapter(1, expires_at=1.0), town.instance(town.a))
    status, _, body = await town.site.chat(town.key, "ft1:1")
    assert (status, body["error"]["code"]) == (404, "adapter_not_deployed")


async def test_metrics(town: Town) -> None:
    await town.site.chat(town.key, BASE)
    await town.site.chat(town.key, "no-such")
    async with town.site.client.get(f"{town.site.url}/metrics") as answer:
        text = await answer.text()
    for line in (
        'pillion_gateway_requests_total{kind="inference",status="200"} 1.0',
        'pillion_gateway_requests_total{kind="inference",status="404"} 1.0',
        'pillion_gateway_in_flight{kind="inference"} 0.0',
        'pillion_gateway_first_byte_seconds_count{kind="inference"} 2.0',
        "pillion_gateway_snapshot_version 1.0",
    ):
        assert line in text.splitlines()
    operator, operators = make_key(ACME, "admin")
    await town.publish(town.entry, operators, town.adapter, town.instance(town.a))
    # Through a proxy that nobody told of: it might be anybody.
    for key, status in ((None, 401), (town.key, 403), (operator, 200)):
        fields = {"x-forwarded-for": "127.0.0.1"} | ({"authorization": f"Bearer {key}"} if key else {})
        async with town.site.client.get(f"{town.site.url}/metrics", headers=fields) as answer:
            assert answer.status == status
    assert "acc_" not in text
    assert "adp_" not in text
