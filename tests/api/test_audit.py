"""Who did what: a row for every call that is to change something, with what came of it."""

from __future__ import annotations

from typing import Any

import pytest

from pillion.control.login_limits import LoginLimits
from pillion.core.errors import UnavailableError
from tests.api.people import browser, join
from tests.api.site import Site, found, refused


async def rows(site: Site, **params: Any) -> list[dict[str, Any]]:
    """Of the tenant `a`, the oldest first."""
    data: list[dict[str, Any]] = found(await site.a.get("/v1/account/audit", params=params))["data"]
    return data[::-1]


async def test_what_was_done_refused_and_made(site: Site) -> None:
    adapter = await site.a.adapter()
    made = found(await site.a.post("/v1/instances", {"model": "tiny", "lora": {}}))
    path = f"/v1/instances/{made['id']}/adapters"
    await site.a.post(path, {"adapter": "mine"}, headers={"x-request-id": "req-7"})
    refused(await site.a.post(path, {"adapter": "mine"}), 409, "already_attached")
    await site.a.delete(f"{path}/mine", params={"force": True})
    refused(await site.a.delete("/v1/adapters/nobody"), 404, "not_found")
    told = [(r["action"], r["subject"], r["status"], r["error"], r["made"]) for r in await rows(site)]
    assert told[0] == ("upload_adapter", "/v1/adapters/upload", 201, None, adapter["id"])
    assert told[1] == ("launch_instance", "/v1/instances", 202, None, str(made["id"]))
    assert told[2] == ("attach_adapter", path, 202, None, adapter["id"])
    assert told[3] == ("attach_adapter", path, 409, "already_attached", None)
    assert told[4][:2] == ("detach_adapter", f"{path}/mine?force=true")
    assert told[5] == ("delete_adapter", "/v1/adapters/nobody", 404, "not_found", None)
    assert {(r["by"], r["account"]) for r in await rows(site)} == {(site.a.who.key, site.a.who.account)}
    assert [r["request_id"] for r in await rows(site, action="attach_adapter")] == ["req-7", None]


async def test_reading_leaves_nothing_and_what_may_not_be_done_does(site: Site) -> None:
    found(await site.a.get("/v1/adapters"))
    refused(await site.a.infer.post("/v1/keys", json={}), 403, "insufficient_scope")
    refused(await site.nobody.post("/v1/keys", json={}), 401, "invalid_api_key")
    (row,) = await rows(site)
    assert (row["action"], row["status"], row["error"]) == ("create_key", 403, "insufficient_scope")
    assert row["by"] != site.a.who.key


async def test_a_new_key_is_named_and_not_shown(site: Site) -> None:
    key = found(await site.a.post("/v1/keys", {"name": "app"}))
    (row,) = await rows(site)
    assert row["made"] == key["id"]
    assert key["key"] not in str(row)


async def test_bodies_that_are_none_are_refused_before_anything_is_done(site: Site) -> None:
    refused(await site.a.post("/v1/instances", {"modl": "tiny"}), 400, "invalid_request")
    told = [(r["action"], r["status"], r["error"]) for r in await rows(site)]
    assert told == [("launch_instance", 400, "invalid_request")]


async def test_each_sees_its_own_and_the_operator_all(site: Site) -> None:
    await site.a.post("/v1/keys", {"name": "x"})
    await site.b.post("/v1/keys", {"name": "y"})
    accounts = [r["account"] for r in found(await site.admin.get("/v1/admin/audit"))["data"]]
    assert accounts == [site.b.who.account, site.a.who.account]
    params = {"account": site.a.who.account, "limit": 1}
    page = found(await site.admin.get("/v1/admin/audit", params=params))
    assert ([r["account"] for r in page["data"]], page["has_more"]) == ([site.a.who.account], False)
    assert {r["account"] for r in await rows(site)} == {site.a.who.account}


async def test_pages(site: Site) -> None:
    for name in "abc":
        await site.a.post("/v1/keys", {"name": name})
    first = found(await site.a.get("/v1/account/audit", params={"limit": 2}))
    rest = found(await site.a.get("/v1/account/audit", params={"after": first["next"]}))
    ids = [r["id"] for r in first["data"] + rest["data"]]
    assert (len(ids), first["has_more"], rest["has_more"]) == (3, True, False)
    assert ids == sorted(ids, reverse=True)


async def test_what_cannot_be_written_down_is_not_done(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> Any:
        raise UnavailableError("The database does not answer.", code="unavailable")

    monkeypatch.setattr(site.control.db, "transaction", away)
    refused(await site.a.post("/v1/keys", {"name": "x"}), 503, "unavailable")


async def test_what_broke_has_an_outcome(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from pillion.api import keys

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(keys.keys, "revoke", broken)
    refused(await site.a.delete("/v1/keys/key_1"), 500, "internal_error")
    (row,) = await rows(site)
    assert (row["status"], row["error"]) == (500, "internal_error")


async def logged(site: Site, **params: Any) -> list[tuple[str, str, int, str | None]]:
    """Logins of the tenant `a`, the oldest first."""
    return [
        (r["by"], r["subject"], r["status"], r["error"]) for r in await rows(site, action="log_in", **params)
    ]


async def test_who_logged_in_and_who_tried(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillion.control.login_limits.PER_MINUTE", 3)
    site.control.login_limits = LoginLimits(lambda: 0.0)
    async with browser(site) as window:
        ann = (await join(site, window, site.a, "ann@example.com"))["member"]["id"]
        assert (await window.log_in("ann@example.com")).status_code == 200
        refused(await window.log_in("ann@example.com", "wrong password"), 401, "invalid_login")
        refused(await window.log_in("nobody@example.com", "hunter2 hunter2"), 401, "invalid_login")
        for _ in range(3):
            refused(await window.log_in("ann@example.com"), 429, "rate_limit_exceeded")
        key = {"api_key": site.a.manage.headers["authorization"].split()[1]}
        site.control.login_limits = LoginLimits(lambda: 0.0)
        found(await window.post("/v1/auth/login", key))
    way = "/v1/auth/login"
    assert [(by, subject.split()[0], *rest) for by, subject, *rest in await logged(site)] == [
        (ann, "/v1/invites/accept", 200, None),
        (ann, way, 200, None),
        (ann, way, 401, "invalid_login"),
        (ann, way, 429, "rate_limit_exceeded"),
        (site.a.who.key, way, 200, None),
    ]
    assert found(await site.b.get("/v1/account/audit"))["data"] == []
    everyones = found(await site.admin.get("/v1/admin/audit", params={"action": "log_in"}))["data"]
    (unknown,) = [row for row in everyones if row["account"] == ""]
    assert (unknown["by"], unknown["status"]) == ("", 401)
    assert "hunter2" not in str(everyones)
    assert "nobody@" not in str(everyones)
