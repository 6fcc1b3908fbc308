"""Bytes go when nobody needs them, and not before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pillion.control import leftovers
from pillion.control.leftovers import Keep
from tests.api.site import Site, found


def age(path: Path, seconds: float) -> None:
    for entry in (path, *path.glob("*")):
        os.utime(entry, (entry.stat().st_atime, entry.stat().st_mtime - seconds))


async def test_what_was_deleted_goes_after_a_while(site: Site) -> None:
    kept, shared, gone = [await site.a.adapter(name) for name in ("kept", "shared", "gone")]
    await site.b.adapter("same-bytes", seed=sum(b"shared"))
    store = site.control.artifacts
    for name in ("shared", "gone"):
        found(await site.a.delete(f"/v1/adapters/{name}"))
    assert await leftovers.clear(site.control) == []
    for row in (kept, shared, gone):
        age(store.path(row["digest"]), leftovers.GRACE_S + 60)
    assert await leftovers.clear(site.control) == [gone["digest"]]
    assert not store.path(gone["digest"]).exists()
    for tenant, name in ((site.a, "kept"), (site.b, "same-bytes")):
        assert (await tenant.get(f"/v1/adapters/{name}/download")).status_code == 200


async def test_bytes_that_came_again_are_young(site: Site) -> None:
    made = await site.a.adapter("mine")
    path = site.control.artifacts.path(made["digest"])
    found(await site.a.delete("/v1/adapters/mine"))
    age(path, leftovers.GRACE_S + 60)
    again = await site.a.adapter("mine")
    assert again["digest"] == made["digest"]
    async with site.control.db.transaction() as tx:  # its row is still on its way
        await tx.adapters.delete(site.a.who.account, again["row_id"])
    assert await leftovers.clear(site.control) == []
    assert path.exists()


async def test_receptions_that_broke_off_go_after_a_while(site: Site) -> None:
    incoming = site.control.artifacts.open_incoming()
    (incoming / "upload").write_bytes(b"x")
    await leftovers.clear(site.control)
    assert incoming.exists()
    age(incoming, leftovers.RECEIVING_S + 60)
    await leftovers.clear(site.control)
    assert not incoming.exists()


async def test_what_is_told_of_the_past_goes_when_it_is_old(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "BATCH", 2)
    await site.a.adapter()
    account = site.a.who.account
    for number in range(5):
        async with site.control.db.transaction() as tx:
            at = site.control.clock() - 100 + number
            await tx.events.append(account, at=at, kind="k", subject="old")
            await tx.audit.begin(account, at=at, key_id="k", action="old", subject="s", request_id=None)
    assert await leftovers.forget(site.control, Keep()) == {}
    gone = await leftovers.forget(site.control, Keep(events_s=50, audit_s=97.5, job_logs_s=50))
    assert gone == {"events": 5, "audit": 3, "job_logs": 0}
    assert found(await site.a.get("/v1/events", params={"subject": "old"}))["data"] == []
    assert len(found(await site.a.get("/v1/account/audit"))["data"]) == 3
