"""Control's metrics: for the operator, and on the internal listener."""

from __future__ import annotations

import re

import httpx

from pillion.api import internal
from tests.api.site import Site, refused
from tests.control.world import ticks


def value(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    assert found, f"{series} is not in\n{text}"
    return float(found[1])


async def test_what_runs_is_counted(site: Site) -> None:
    instance, adapter = await site.running(), await site.a.adapter()
    await site.attached(site.a, instance["id"], adapter)
    site.control.gateways.heard("gw-behind", 0)
    site.control.gateways.heard("gw", site.control.publisher.version)
    await ticks(site.control, 1)
    answer = await site.admin.get("/v1/admin/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.text
    assert value(text, "pillion_control_leader") == 1
    assert value(text, "pillion_control_tick_seconds_count") >= 1
    assert value(text, "pillion_control_ticks_failed_total") == 0
    assert value(text, "pillion_control_grants_sent_total") >= 1
    assert value(text, "pillion_control_snapshot_version") == site.control.publisher.version
    assert value(text, 'pillion_control_replicas{region="local",stage="ready"}') == 1
    assert value(text, 'pillion_control_slots{region="local"}') == 4
    assert value(text, 'pillion_control_slots_used{region="local"}') == 1
    assert value(text, 'pillion_control_instances{state="running"}') == 1
    assert value(text, 'pillion_control_attachments{state="ready"}') == 1
    assert value(text, 'pillion_control_gateways{state="behind"}') >= 1
    assert value(text, "pillion_control_ledger_mismatches") == 0


async def test_a_tick_that_fails_is_counted(site: Site) -> None:
    async def broken() -> None:
        raise RuntimeError("broken")

    site.control.controller.publish = broken  # type: ignore[assignment]
    await ticks(site.control, 2)
    text = (await site.admin.get("/v1/admin/metrics")).text
    assert value(text, "pillion_control_ticks_failed_total") >= 1


async def test_it_is_the_operators(site: Site) -> None:
    refused(await site.a.get("/v1/admin/metrics"), 403, "insufficient_scope")


async def test_on_the_internal_listener_with_its_token(site: Site) -> None:
    transport = httpx.ASGITransport(internal.build(site.control, "token"))
    async with httpx.AsyncClient(transport=transport, base_url="http://internal") as client:
        assert (await client.get("/metrics")).status_code == 401
        answer = await client.get("/metrics", headers={"authorization": "Bearer token"})
    assert answer.status_code == 200
    assert "pillion_control_leader" in answer.text
