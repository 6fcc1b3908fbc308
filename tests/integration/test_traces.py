"""One trace goes through gateway, control, agent and engine: what a client began is found in all of them."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.collector import Collector, Span, collector

from .site import Site, adapter_file, running, until

ATTACH, CALL, DETACH = (f"0af7651916cd43dd8448eb211c8031{n:02d}" for n in range(3))


def within(trace: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}


def spans(told: Collector, trace: str, *names: str) -> dict[str, Span]:
    """Of the trace, by name, once all of these are there."""

    def look() -> dict[str, Span] | None:
        found = {f"{span.service}:{span.name}": span for span in told.spans if span.trace == trace}
        return found if found.keys() >= set(names) else None

    return until(look, f"{names} in {trace}: {[(s.service, s.name, s.trace) for s in told.spans]}")


def test_a_clients_trace_goes_on_in_every_part(tmp_path: Path) -> None:
    with collector() as told:
        place = Site(
            tmp_path, environment={"PILLION_TRACING_ENDPOINT": told.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        )
        with running(place):
            client = place.client()
            http: httpx.Client = client._transport._http
            made = client.instances.launch(
                "tiny", regions=["eu-1"], lora={"enabled": True, "max_adapters": 2, "on_demand": True}
            )
            client.instances.wait_running(made.id, timeout=60)
            one, two = (client.adapters.upload(f"d{n}", "tiny", adapter_file(tmp_path, n)) for n in range(2))

            path = f"/v1/instances/{made.id}/adapters"
            http.post(path, json={"adapter": one.id}, headers=within(ATTACH)).raise_for_status()
            found = spans(told, ATTACH, "pillion-control:grant", "pillion-agent:load")
            grant, load = found["pillion-control:grant"], found["pillion-agent:load"]
            assert load.parent == grant.id
            assert load.attributes["pillion.engine_name"] == f"{one.id}@{one.digest}"
            assert load.attributes["pillion.replica"] == grant.attributes["pillion.replica"]

            body = {"model": two.aliases[0], "messages": [{"role": "user", "content": "hi"}]}
            until(
                lambda: http.post("/v1/chat/completions", json=body, headers=within(CALL)).is_success,
                "answered",
            )
            found = spans(told, CALL, "pillion-gateway:chat", "pillion-agent:ensure", "pillion-agent:load")
            assert found["pillion-agent:load"].parent == found["pillion-agent:ensure"].id
            assert found["pillion-agent:ensure"].attributes["pillion.adapter"] == two.id

            http.delete(f"{path}/{one.id}", headers=within(DETACH)).raise_for_status()
            found = spans(told, DETACH, "pillion-control:grant", "pillion-agent:unload")
            assert found["pillion-agent:unload"].parent == found["pillion-control:grant"].id
