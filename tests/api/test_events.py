"""Events: of one thing, of an account, of all; in pages and as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pillion.control import events, keys, logins
from pillion.control.events import Wanted
from tests.api.people import browser, join
from tests.api.site import Site, found, refused


async def kinds(site: Site, path: str = "/v1/events", **params: Any) -> list[str]:
    return [event["kind"] for event in found(await site.a.get(path, params=params))["data"]]


async def test_all_that_happened_to_the_account_by_page_kind_and_subject(site: Site) -> None:
    made, adapter = await site.running(), await site.a.adapter()
    await site.attached(site.a, made["id"], adapter)
    await site.b.adapter("theirs")
    told = await kinds(site)
    assert told[0] == "instance_launched"
    assert {"instance_running", "attach_asked", "attachment_ready"} <= set(told)
    assert await kinds(site, newest=True) == told[::-1]
    assert await kinds(site, kind=["attach_asked", "instance_launched"]) == [
        "instance_launched",
        "attach_asked",
    ]
    of_it = await kinds(site, subject=f"instance:{made['id']}")
    assert {"instance_launched", "replica_added", "replica_ready", "instance_running"} <= set(of_it)
    assert not any(kind.startswith("attach") for kind in of_it)
    paged, after = [], None
    while True:
        page = found(
            await site.a.get("/v1/events", params={"limit": 1} | ({"after": after} if after else {}))
        )
        paged += [event["kind"] for event in page["data"]]
        after = page["next"]
        if not page["has_more"]:
            break
    assert paged == told
    of_it = await kinds(site, f"/v1/adapters/{adapter['id']}/events", newest=True)
    assert of_it[0] == "attachment_ready"


async def test_the_operator_sees_whose_they_are(site: Site) -> None:
    await site.running()
    await site.running(site.b)
    page = found(await site.admin.get("/v1/admin/events", params={"kind": "instance_launched"}))
    accounts = [event["account"] for event in page["data"]]
    assert accounts == [site.a.who.account, site.b.who.account]
    only = found(await site.admin.get("/v1/admin/events", params={"account": site.b.who.account}))["data"]
    assert {event["account"] for event in only} == {site.b.who.account}
    refused(await site.a.get("/v1/admin/events"), 403, "insufficient_scope")
    refused(await site.a.get("/v1/admin/audit"), 403, "insufficient_scope")


async def test_of_what_is_not_ones_own(site: Site) -> None:
    made = await site.running(site.b)
    await site.b.adapter("theirs")
    for path in (f"/v1/instances/{made['id']}/events", "/v1/adapters/theirs/events"):
        refused(await site.a.get(path), 404, "not_found")
        refused(await site.a.get(path, params={"follow": True}), 404, "not_found")


Lines = AsyncIterator[bytes]


@asynccontextmanager
async def following(lines: Lines) -> AsyncIterator[Lines]:
    async with asyncio.timeout(20):
        try:
            yield lines
        finally:
            await lines.aclose()  # type: ignore[attr-defined]


async def event(lines: Lines) -> dict[str, Any]:
    async for line in lines:
        if line.strip():
            told: dict[str, Any] = json.loads(line)
            return told
    raise AssertionError("it ended")


async def put(site: Site, kind: str, at: float | None = None) -> int:
    async with site.control.db.transaction() as tx:
        now = site.control.clock() if at is None else at
        return (await tx.events.append(site.a.who.account, at=now, kind=kind, subject="s")).id


async def test_following_goes_on_from_a_cursor_and_tells_each_once(site: Site) -> None:
    first = await put(site, "one")
    await put(site, "two")
    async with following(events.follow(site.control, site.a.who, Wanted("s"), str(first))) as lines:
        assert (await event(lines))["kind"] == "two"
        await put(site, "three")
        assert (await event(lines))["kind"] == "three"
        site.world.clock.ahead += events.SETTLED_S + 1
        await put(site, "four")
        assert (await event(lines))["kind"] == "four"


async def test_what_is_committed_late_under_an_earlier_id_is_told_too(site: Site) -> None:
    told: list[list[Any]] = []

    async def read(tx: Any, after: int, limit: int) -> list[Any]:
        rows = await tx.events.list(site.a.who.account, after=after, limit=limit, subject="s")
        told.append(rows)
        return [row for row in rows if row.kind != "late" or len(told) > 1]

    await put(site, "late")
    await put(site, "early")
    lines = events._follow(site.control, site.a.who, 0, read, events._view)
    async with following(lines):
        assert [(await event(lines))["kind"] for _ in range(2)] == ["early", "late"]


async def test_the_operator_follows_all(site: Site) -> None:
    await put(site, "one")
    lines = events.follow_all(site.control, site.b.who, Wanted("s"), site.a.who.account, None)
    async with following(lines):
        assert (await event(lines))["account"] == site.a.who.account


async def test_following_ends_with_the_key(site: Site) -> None:
    lines = events.follow(site.control, site.a.who, Wanted("s"), None)
    async with following(lines):
        await put(site, "one")
        await event(lines)
        await keys.revoke(site.control, site.a.who, site.a.who.key)
        assert [line async for line in lines if line.strip()] == []


async def test_following_ends_with_the_membership(site: Site) -> None:
    async with browser(site) as theirs:
        session = await join(site, theirs, site.a, "bob@example.com")
        bob = await logins.enter(site.control, theirs.client.cookies["pillion_session"], "")
    async with following(events.follow(site.control, bob, Wanted("s"), None)) as lines:
        await put(site, "one")
        await event(lines)
        found(await site.a.delete(f"/v1/members/{session['member']['id']}"))
        await put(site, "not theirs")
        assert [line async for line in lines if line.strip()] == []


async def test_following_ends_where_the_account_is_suspended(site: Site) -> None:
    async with following(events.follow(site.control, site.a.who, Wanted("s"), None)) as lines:
        await put(site, "one")
        await event(lines)
        found(await site.admin.patch(f"/v1/admin/accounts/{site.a.who.account}", json={"suspended": True}))
        await put(site, "two")
        assert [line async for line in lines if line.strip()] == []


async def test_it_streams_over_http(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the key is good no more: the client that is used here gives an answer when it is whole."""
    answers = iter([True, False])

    async def good(*_: object) -> bool:
        return next(answers)

    monkeypatch.setattr(events, "still_good", good)
    await put(site, "one")
    told = await site.a.get("/v1/events", params={"follow": True, "subject": "s"})
    assert told.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["kind"] for line in told.text.splitlines()] == ["one"]
