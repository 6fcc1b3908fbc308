"""Money over the API: what the operator sets, what tenants see, and who may do what."""

from __future__ import annotations

import dataclasses

import pytest

from pillion.control.billing import Billing
from tests.api.site import Site, found, refused


@pytest.fixture(autouse=True)
def billing(site: Site) -> None:
    site.control.settings = dataclasses.replace(site.control.settings, billing=True)


async def priced(site: Site, hourly: int = 1_000_000) -> None:
    body = {"kind": "gpu_hour", "item": "cpu", "hourly": hourly}
    answer = await site.admin.post("/v1/admin/prices", json=body)
    assert answer.status_code == 201, answer.text
    site.world.clock.ahead += 3


async def credited(site: Site, amount: int, **more: object) -> None:
    body = {"account": site.a.who.account, "amount": amount, **more}
    assert (await site.admin.post("/v1/admin/credits", json=body)).status_code == 201


async def test_a_launch_is_held_for_and_refunded(site: Site) -> None:
    await priced(site)
    launch = {"model": "tiny", "regions": ["local"]}
    error = refused(await site.a.post("/v1/instances", launch), 402, "insufficient_balance")
    assert "24.00; 0.00 is available" in error["message"]
    assert found(await site.a.get("/v1/instances?all=true"))["data"] == []
    adapter = await site.a.adapter()
    deploy = {"launch": {"model": "tiny", "regions": ["local"], "lora": {}}}
    refused(await site.a.post(f"/v1/adapters/{adapter['id']}/deploy", deploy), 402, "insufficient_balance")

    await credited(site, 30_000_000, key="first", note="thanks")
    await credited(site, 30_000_000, key="first", note="thanks")
    made = found(await site.a.post("/v1/instances", launch))
    await site.a.delete(f"/v1/instances/{made['id']}")
    await Billing(site.control, "test").step()
    data = found(await site.a.get("/v1/billing/transactions"))["data"]
    assert [(t["kind"], t["available_change"], t["held_change"], t["balance_after"]) for t in data][:2] == [
        ("topup", 30_000_000, 0, 30_000_000),
        ("hold", -24_000_000, 24_000_000, 6_000_000),
    ]
    assert data[0]["note"] == "thanks"
    assert data[-1]["kind"] == "refund"
    assert data[-1]["held_after"] == 0
    only = found(await site.a.get("/v1/billing/transactions?kind=hold"))["data"]
    assert [t["subject"] for t in only] == [f"instance:{made['id']}"]
    assert found(await site.b.get("/v1/billing/transactions"))["data"] == []
    theirs = await site.admin.get(f"/v1/admin/credits?account={site.a.who.account}&limit=1")
    assert (found(theirs)["has_more"], len(found(theirs)["data"])) == (True, 1)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"kind": "gpu_hour", "item": "cpu"}, "hourly"),
        ({"kind": "gpu_hour", "item": "cpu", "hourly": 1, "input": 1}, "hourly"),
        ({"kind": "tokens", "item": "tiny", "input": 1}, "input"),
        ({"kind": "tokens", "item": "cpu", "input": 1, "output": 1}, "item"),
        ({"kind": "tokens", "item": "tiny", "input": 1, "output": 1, "region": "local"}, "region"),
        ({"kind": "gpu_hour", "item": "cpu", "hourly": 1, "region": "nowhere"}, "region"),
        ({"kind": "gpu_hour", "item": "cpu", "hourly": 10**12 + 1}, "hourly"),
        ({"kind": "gpu_hour", "item": "cpu", "hourly": -1}, "hourly"),
        ({"kind": "gpu_hour", "item": "cpu", "hourly": 1, "effective_at": 1}, "effective_at"),
        ({"kind": "gpu_hour", "item": "cpu", "hourly": 1.5}, "hourly"),
    ],
)
async def test_prices_that_cannot_be(site: Site, body: dict[str, object], param: str) -> None:
    before = found(await site.admin.get("/v1/admin/prices"))["data"]
    error = refused(await site.admin.post("/v1/admin/prices", json=body), 400, "invalid_request")
    assert error["param"] == param
    assert found(await site.admin.get("/v1/admin/prices"))["data"] == before


async def test_prices_are_listed_and_one_instant_has_one(site: Site) -> None:
    await priced(site)
    at = site.control.clock() + 60
    body = {"kind": "tokens", "item": "tiny", "input": 100_000, "output": 400_000, "effective_at": at}
    made = found(await site.admin.post("/v1/admin/prices", json=body))
    assert (made["input"], made["hourly"], made["effective_at"]) == (
        100_000,
        None,
        pytest.approx(at, abs=0.001),
    )
    refused(await site.admin.post("/v1/admin/prices", json=body), 409, "name_taken")
    data = found(await site.admin.get("/v1/admin/prices"))["data"]
    assert [(p["kind"], p["item"]) for p in data] == [("gpu_hour", "cpu"), ("tokens", "tiny")]


async def test_money_is_the_operators_to_give(site: Site) -> None:
    give = {"account": site.a.who.account, "amount": 10**9}
    price = {"kind": "gpu_hour", "item": "cpu", "hourly": 0}
    for answer in (
        await site.a.post("/v1/admin/credits", give),
        await site.a.post("/v1/admin/prices", price),
        await site.a.get("/v1/admin/prices"),
        await site.a.get(f"/v1/admin/credits?account={site.a.who.account}"),
        await site.a.infer.get("/v1/billing/transactions"),
    ):
        refused(answer, 403, "insufficient_scope")
    refused(await site.admin.post("/v1/admin/credits", json={**give, "account": "acc_x"}), 404, "not_found")
    refused(await site.admin.get("/v1/admin/credits?account=acc_x"), 404, "not_found")
    for amount in (0, -5, 1.5, 1e3, "5", True, None, 10**15 + 1, 10**30):
        bad = {**give, "amount": amount}
        refused(await site.admin.post("/v1/admin/credits", json=bad), 400, "invalid_request")
    less = {**give, "amount": -5, "kind": "admin_correction"}
    refused(await site.admin.post("/v1/admin/credits", json=less), 409, "conflict")
    assert found(await site.a.get("/v1/billing/transactions"))["data"] == []
