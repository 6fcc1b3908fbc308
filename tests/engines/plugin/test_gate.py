"""The gate: who may do what, and which model may answer."""

import pytest
from gated_fake import AGENT, BASE, INFER, Bench, Client, FakeEngine

from pillion.engines.plugin.pillion_engine.gate import Gate

ADAPTER = "adp_a@1"


@pytest.mark.parametrize(("infer", "agent"), [("", "a"), ("a", ""), ("same", "same")])
async def test_it_refuses_to_be_made_without_two_keys(infer: str, agent: str) -> None:
    engine = FakeEngine()
    with pytest.raises(ValueError, match="two different keys"):
        Gate(engine, engine, infer_key=infer, agent_key=agent, base_names=[BASE], slots=1)


async def test_health_is_open() -> None:
    bench = Bench()
    assert (await Client(bench.gate, None).call("GET", "/health")).status == 200


@pytest.mark.parametrize("key", [None, "", "wrong", INFER + "x", INFER[:-1]])
@pytest.mark.parametrize("path", ["/v1/models", "/pillion/v1/state", "/metrics", "/v1/chat/completions"])
async def test_without_a_key_nothing_else_is(key: str | None, path: str) -> None:
    bench = Bench()
    answer = await Client(bench.gate, key).call("GET", path)
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    assert not bench.engine.served


async def test_two_authorization_headers_are_none() -> None:
    bench = Bench()
    answer = await bench.agent.call("GET", "/v1/models", Authorization=f"Bearer {INFER}")
    assert answer.status == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/pillion/v1/state"),
        ("POST", "/pillion/v1/adapters"),
        ("DELETE", "/pillion/v1/adapters/x"),
        ("GET", "/metrics"),
        ("GET", "/v1"),
        ("GET", "//v1/models"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("DELETE", "/v1/responses/r1"),
        ("POST", "/tokenize"),
    ],
)
async def test_the_infer_key_can_only_infer(method: str, path: str) -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    bench.engine.served.clear()
    answer = await bench.user.call(method, path, {"model": BASE, "lora_name": "x", "lora_path": "/x"})
    assert (answer.status, answer.code) == (403, "insufficient_scope")
    assert not bench.engine.served


async def test_sockets_are_closed() -> None:
    bench = Bench()
    sent = []

    async def send(message: object) -> None:
        sent.append(message)

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    await bench.gate({"type": "websocket", "path": "/v1/realtime", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_the_base_and_an_open_adapter_answer() -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    for model in (BASE, ADAPTER):
        assert (await bench.user.chat(model).answer()).status == 200
    assert bench.engine.served == [BASE, ADAPTER]


async def test_a_closed_name_is_fenced_for_gateways_and_open_to_the_agent() -> None:
    bench = Bench()
    await bench.load(ADAPTER, is_open=False)
    refused = await bench.user.chat(ADAPTER).answer()
    assert (refused.status, refused.code) == (503, "adapter_fenced")
    assert refused.headers["x-pillion-retry"] == "1"
    assert int(refused.headers["retry-after"]) >= 1
    assert (await bench.agent.chat(ADAPTER).answer()).status == 200
    assert bench.engine.served == [ADAPTER]


async def test_an_adapter_that_is_not_loaded_never_falls_to_the_base() -> None:
    bench = Bench()
    refused = await bench.user.chat("adp_gone@1").answer()
    assert (refused.status, refused.code) == (503, "adapter_not_resident")
    assert refused.headers["x-pillion-retry"] == "1"
    assert not bench.engine.served


@pytest.mark.parametrize("model", ["other", "", None, 7, ["tiny"], {"a": 1}, BASE.upper(), BASE + " "])
async def test_any_other_model_is_unknown(model: object) -> None:
    bench = Bench()
    answer = await bench.user.call("POST", "/v1/completions", {"model": model})
    assert (answer.status, answer.code) == (404, "model_not_found")
    assert "x-pillion-retry" not in answer.headers
    assert not bench.engine.served


async def test_a_missing_model_is_unknown() -> None:
    bench = Bench()
    for body in ({}, [], "tiny", None, 3):
        raw = b"null" if body is None else body
        assert (await bench.user.call("POST", "/v1/completions", raw)).status == 404
    assert not bench.engine.served


@pytest.mark.parametrize("body", [b"", b"{", b"model=tiny", b"\xff\xfe\x00", b"[" * 100_000])
async def test_what_is_not_json_is_refused(body: bytes) -> None:
    bench = Bench()
    answer = await bench.user.call("POST", "/v1/completions", body)
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert not bench.engine.served


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_a_form_that_is_json_too_is_refused(kind: str) -> None:
    bench = Bench()
    body = b'{"model":"tiny","x":"&model=adp_a@1&"}'
    answer = await bench.user.call("POST", "/v1/audio/transcriptions", body, content_type=kind)
    assert answer.status == 400


@pytest.mark.parametrize("declared", [True, False])
async def test_bodies_have_a_limit(declared: bool) -> None:
    bench = Bench(max_body_bytes=100)
    body = b'{"model":"tiny","x":"' + b"y" * 100 + b'"}'
    headers = {"content_length": str(len(body))} if declared else {}
    answer = await bench.user.call("POST", "/v1/completions", body, **headers)
    assert (answer.status, answer.code) == (413, "request_too_large")
    assert not bench.engine.served


async def test_the_agent_may_do_everything() -> None:
    bench = Bench()
    assert (await bench.agent.call("GET", "/metrics")).status == 200
    assert (await bench.agent.call("GET", "/v1/models")).status == 200
    assert (await bench.agent.call("POST", "/v1/audio/transcriptions", b"--x")).status == 200
    unknown = await bench.agent.call("GET", "/pillion/v1/nothing")
    assert (unknown.status, unknown.code) == (404, "not_found")


async def test_state_asks_the_engine() -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    assert await bench.state() == {
        "engine": "fake",
        "engine_version": "1",
        "plugin": {"version": "0.1.0", "lora": "native", "reason": None},
        "max_requests": 7,
        "base": {"name": BASE, "inflight": 0},
        "adapters": [
            {
                "name": ADAPTER,
                "path": f"/a/{ADAPTER}",
                "inflight": 0,
                "requests": 0,
                "open": True,
                "resident": True,
            }
        ],
    }
    bench.engine.held.clear()
    assert (await bench.adapter(ADAPTER))["resident"] is False


async def test_keys_are_bearer_tokens_in_any_case() -> None:
    bench = Bench()
    plain = Client(bench.gate, None)
    assert (await plain.call("GET", "/metrics", authorization=f"bearer {AGENT}")).status == 200
    assert (await plain.call("GET", "/metrics", authorization=f"Basic {AGENT}")).status == 401
    assert (await plain.call("GET", "/metrics", authorization=AGENT)).status == 401


FORM = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("form", "status"),
    [
        (FORM % (b"model", b"tiny"), 200),
        (FORM % (b"model", b"nobody"), 404),
        (FORM % (b"model", b"adp_a@1"), 503),
        (FORM % (b"file", b"tiny"), 400),
        (FORM.replace(b"--x", b"--y") % (b"model", b"tiny"), 400),
        (b"", 400),
    ],
)
async def test_of_a_form_the_first_field_is_the_model(form: bytes, status: int) -> None:
    bench = Bench()
    kind = "multipart/form-data; boundary=x"
    answer = await bench.user.call("POST", "/v1/audio/transcriptions", form, content_type=kind)
    assert answer.status == status
