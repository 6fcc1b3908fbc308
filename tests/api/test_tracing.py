"""Control's requests as spans of a trace that begins elsewhere."""

from __future__ import annotations

from types import SimpleNamespace

import httpx

from pillion.api import app as api_app
from pillion.main.config import load
from pillion.main.tracing import trace_to, tracer_provider
from tests.collector import collector

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_request_is_a_part_of_its_clients_trace() -> None:
    with collector() as told:
        provider = tracer_provider(
            trace_to(load(None, {}, {"PILLION_TRACING_ENDPOINT": told.url})), "control"
        )
        assert provider is not None
        app = api_app.build(SimpleNamespace(), provider)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://pillion") as client:
            assert (await client.get("/healthz", headers={"traceparent": PARENT})).status_code == 200
        provider.shutdown()
    (span,) = told.spans
    assert (span.service, span.trace, span.parent) == ("pillion-control", PARENT[3:35], PARENT[36:52])
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["http.route"] == "/healthz"
