"""Gateways that join: the operator's to add and revoke, and what they may then ask of control's internal listener."""

from __future__ import annotations

import httpx

from pillion.api import internal
from tests.api.site import Site, found, refused

PATH = "/v1/admin/gateways"
OWN = "pgw_" + "a" * 40


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


async def test_they_are_the_operators(site: Site) -> None:
    for method, path in (("GET", PATH), ("POST", PATH), ("DELETE", f"{PATH}/gwy_x")):
        answer = await site.a.manage.request(method, path, json={} if method == "POST" else None)
        refused(answer, 403, "insufficient_scope")
    made = found(await site.admin.post(PATH, json={"name": "eu-1"}))
    assert made["token"].startswith("pgj_")
    (listed,) = found(await site.admin.get(PATH))["data"]
    assert listed == {**made, "token": None}
    found(await site.admin.delete(f"{PATH}/{made['id']}"))
    refused(await site.admin.delete(f"{PATH}/{made['id']}"), 404, "not_found")


async def test_one_joins_and_is_let_in_until_it_is_revoked(site: Site) -> None:
    made = found(await site.admin.post(PATH, json={}))
    transport = httpx.ASGITransport(internal.build(site.control, "local"))
    async with httpx.AsyncClient(transport=transport, base_url="http://internal") as client:

        async def ask(shown: str) -> int:
            return (await client.get("/internal/v1/snapshot", headers=bearer(shown))).status_code

        async def join(token: str, credential: str) -> int:
            answer = await client.post("/internal/v1/join", content=credential, headers=bearer(token))
            return answer.status_code

        assert [await ask(shown) for shown in ("local", OWN, made["token"], "")] == [200, 401, 401, 401]
        for token, credential in (("pgj_x", OWN), (made["token"], "short"), ("", OWN)):
            assert await join(token, credential) == 401
        assert await join(made["token"], OWN) == 204
        assert await join(made["token"], OWN + "x") == 401
        assert await ask(OWN) == 200
        found(await site.admin.delete(f"{PATH}/{made['id']}"))
        assert await ask(OWN) == 401
