"""Spans of requests, as a collector gets them, and the access log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from structlog.testing import capture_logs

from pillion.main.config import load
from pillion.main.tracing import trace_to, tracer_provider
from tests.collector import Collector, Span, collector
from tests.gateway.site import Control, Engine, Site, fleet, site
from tests.gateway.world import make_adapter, make_instance, make_key, make_replica, make_snapshot

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"


@pytest.fixture
def told() -> Iterator[Collector]:
    with collector() as made:
        yield made


@dataclass
class Traced:
    """A gateway that tells `collector`, and its engine."""

    site: Site
    key: str
    collector: Collector
    provider: Any
    engine: Engine

    def spans(self) -> list[Span]:
        self.provider.force_flush()
        return self.collector.spans


@pytest.fixture
async def traced(tmp_path: Path, control: Control, told: Collector) -> AsyncIterator[Traced]:
    provider = tracer_provider(trace_to(load(None, {}, {"PILLION_TRACING_ENDPOINT": told.url})), "gateway")
    assert provider is not None
    text, entry = make_key()
    adapter = make_adapter(1, version=3)
    tracer = provider.get_tracer("test")
    async with (
        fleet(1) as (engine,),
        site(tmp_path / "gateway", control, tracer=tracer, access_log=True) as running,
    ):
        instance = make_instance(1, make_replica("a", adapter, url=engine.url))
        await control.publish(make_snapshot(entry, adapter, instance))
        yield Traced(running, text, told, provider, engine)
    provider.shutdown()


async def counting(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    return web.json_response({"id": "c", "model": body["model"], "choices": [choice], "usage": usage})


async def test_a_request_is_a_part_of_its_clients_trace_and_its_engines_parent(traced: Traced) -> None:
    traced.engine.behave = counting
    headers = {"traceparent": PARENT, "tracestate": "x=1", "x-request-id": "mine"}
    status, _, _ = await traced.site.chat(traced.key, "ft1:1", headers=headers)
    assert status == 200
    (span,) = traced.spans()
    assert (span.service, span.name) == ("pillion-gateway", "chat")
    assert (span.trace, span.parent) == (PARENT[3:35], PARENT[36:52])
    head = traced.engine.headers
    assert head["traceparent"] == f"00-{span.trace}-{span.id}-01"
    assert head["tracestate"] == "x=1"
    assert head["x-request-id"]
    expected = {
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "pillion",
        "gen_ai.request.model": "ft1:1",
        "gen_ai.response.model": "qwen3-4b",
        "pillion.request_id": "mine",
        "pillion.account": "acc_acme",
        "pillion.adapter": "adp_00000000000000000001",
        "pillion.adapter.version": 3,
        "pillion.instance": 1,
        "pillion.replica": "a",
        "pillion.region": "local",
        "pillion.cold": False,
    }
    assert {name: span.attributes.get(name) for name in expected} == expected
    usage = {name: count for name, count in span.attributes.items() if name.startswith("gen_ai.usage.")}
    assert usage == {"gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": 5}
    assert "hi" not in map(str, span.attributes.values())


async def test_a_trace_begins_here_where_the_client_began_none(traced: Traced) -> None:
    await traced.site.chat(traced.key, "qwen3-4b")
    (span,) = traced.spans()
    assert span.parent == ""
    assert traced.engine.headers["traceparent"].startswith(f"00-{span.trace}-{span.id}-")
    assert "pillion.adapter" not in span.attributes


async def test_what_a_client_does_not_sample_is_not_told(traced: Traced) -> None:
    await traced.site.chat(traced.key, "qwen3-4b", headers={"traceparent": UNSAMPLED})
    assert traced.spans() == []
    assert traced.engine.headers["traceparent"].endswith("-00")
    assert traced.engine.headers["traceparent"][3:35] == UNSAMPLED[3:35]


async def test_a_failure_is_one_in_its_span(traced: Traced) -> None:
    await traced.site.chat(traced.key, "nothing")
    (span,) = traced.spans()
    assert span.attributes["http.response.status_code"] == 404
    assert span.attributes["error.type"] == "404"
    assert span.status == 0
    assert traced.engine.asked == []


async def test_the_access_log_has_a_line_for_each_request(traced: Traced) -> None:
    structlog.reset_defaults()
    with capture_logs() as lines:
        await traced.site.chat(traced.key, "ft1:1", headers={"x-request-id": "mine"})
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["request_id"], line["account"], line["status"]) == ("mine", "acc_acme", "200")
    assert (line["adapter"], line["instance"], line["replica"]) == ("adp_00000000000000000001", 1, "a")
    assert line["duration_ms"] > 0


def test_without_an_endpoint_there_are_no_traces(monkeypatch: pytest.MonkeyPatch, told: Collector) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert tracer_provider(trace_to(load(None, {}, {})), "gateway") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", told.url)
    made = tracer_provider(trace_to(load(None, {}, {})), "gateway")
    assert made is not None
    made.get_tracer("t").start_span("s").end()
    made.shutdown()
    assert [span.name for span in told.spans] == ["s"]
