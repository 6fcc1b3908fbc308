"""What belongs to another account and what does not exist get the same answer, byte for byte."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.site import Site, found

ABSENT_ID = "adp_zzzzzzzzzzzzzzzzzzzz"
ABSENT = {"id": ABSENT_ID, "row_id": 987654, "name": "nobodys"}
BODIES: dict[str, Any] = {
    "deploy": {"launch": {"model": "tiny", "lora": {}}},
    "load": {"wait": False},
    "unload": {},
    "": {"label": "stolen"},
}
ADAPTER_ROUTES = [
    ("GET", "/v1/adapters/{}"),
    ("PATCH", "/v1/adapters/{}"),
    ("DELETE", "/v1/adapters/{}"),
    ("DELETE", "/v1/adapters/{}?force=true"),
    ("POST", "/v1/adapters/{}/deploy"),
    ("POST", "/v1/adapters/{}/load"),
    ("POST", "/v1/adapters/{}/unload"),
    ("GET", "/v1/adapters/{}/eligible-instances"),
    ("GET", "/v1/adapters/{}/versions"),
    ("GET", "/v1/adapters/{}/events"),
    ("GET", "/v1/adapters/{}/download"),
]
INSTANCE_ROUTES = [
    ("GET", "/v1/instances/{}"),
    ("DELETE", "/v1/instances/{}"),
    ("GET", "/v1/instances/{}/logs"),
    ("GET", "/v1/instances/{}/events"),
    ("GET", "/v1/instances/{}/adapters"),
    ("POST", "/v1/instances/{}/adapters"),
    ("DELETE", "/v1/instances/{}/adapters/mine"),
]


async def ask(site: Site, method: str, path: str, body: Any = None) -> tuple[int, bytes, dict[str, str]]:
    answer = await site.b.manage.request(method, path, json=body)
    fields = {k: v for k, v in answer.headers.items() if k != "content-length"}
    return answer.status_code, answer.content, fields


def same(one: tuple, two: tuple, foreign: object, absent: object) -> None:
    """The same, but for what the client itself wrote."""
    assert one[0] == two[0] == 404, (one, two)
    assert one[1] == two[1].replace(str(absent).encode(), str(foreign).encode())
    assert one[2] == two[2]


@pytest.mark.parametrize("how", ["id", "row_id", "name"])
@pytest.mark.parametrize(("method", "path"), ADAPTER_ROUTES)
async def test_adapters(site: Site, how: str, method: str, path: str) -> None:
    theirs = await site.a.adapter("theirs")
    await site.b.adapter("mine")
    body = BODIES.get(path.split("{}")[1].strip("/"))
    foreign, absent = theirs[how], ABSENT[how]
    same(
        await ask(site, method, path.format(foreign), body),
        await ask(site, method, path.format(absent), body),
        foreign,
        absent,
    )
    assert found(await site.a.get("/v1/adapters/theirs"))["label"] == "theirs"
    assert found(await site.b.get("/v1/instances"))["data"] == []


@pytest.mark.parametrize(("method", "path"), INSTANCE_ROUTES)
async def test_instances(site: Site, method: str, path: str) -> None:
    theirs = await site.running()
    await site.b.adapter("mine")
    body = {"adapter": "mine"} if method == "POST" else None
    same(
        await ask(site, method, path.format(theirs["id"]), body),
        await ask(site, method, path.format(4242), body),
        theirs["id"],
        4242,
    )
    assert found(await site.a.get(f"/v1/instances/{theirs['id']}"))["state"] == "running"


@pytest.mark.parametrize("how", ["id", "row_id", "name"])
async def test_a_foreign_adapter_on_ones_own_instance(site: Site, how: str) -> None:
    theirs, own = await site.a.adapter("theirs"), await site.running(site.b)
    for method, path, shape in (
        ("POST", f"/v1/instances/{own['id']}/adapters", "adapter"),
        ("DELETE", f"/v1/instances/{own['id']}/adapters/{{}}", None),
        ("POST", "/v1/adapters/warmup", "adapters"),
    ):

        async def of(ref: Any, method: str = method, path: str = path, shape: str | None = shape) -> tuple:
            body = None if shape is None else {shape: [ref] if shape == "adapters" else ref}
            return await ask(site, method, path.format(ref), body)

        same(await of(theirs[how]), await of(ABSENT[how]), theirs[how], ABSENT[how])


async def test_ones_own_adapter_on_a_foreign_instance(site: Site) -> None:
    theirs = await site.running()
    await site.b.adapter("mine")
    for path, body in (
        ("/v1/adapters/mine/load", lambda i: {"backends": [i]}),
        ("/v1/adapters/mine/unload", lambda i: {"backends": [i]}),
        ("/v1/adapters/mine/deploy", lambda i: {"attach": {"instance_id": i}}),
    ):
        same(
            await ask(site, "POST", path, body(theirs["id"])),
            await ask(site, "POST", path, body(4242)),
            theirs["id"],
            4242,
        )


async def test_registered_models_keys_and_jobs(site: Site) -> None:
    found(await site.a.post("/v1/registered-models", {"name": "theirs", "source": "hf:x/y"}))
    key = found(await site.a.get("/v1/keys"))["data"][0]["id"]
    for method, path, foreign, absent in (
        ("GET", "/v1/registered-models/{}", "theirs", "nobodys"),
        ("DELETE", "/v1/registered-models/{}", "theirs", "nobodys"),
        ("DELETE", "/v1/keys/{}", key, "key_zzzzzzzzzzzzzzzzzzzz"),
    ):
        same(
            await ask(site, method, path.format(foreign)),
            await ask(site, method, path.format(absent)),
            foreign,
            absent,
        )
    for path, name in (("/v1/instances", "model"), ("/v1/instances", "model")):
        same(
            await ask(site, "POST", path, {name: "theirs"}),
            await ask(site, "POST", path, {name: "nobodys"}),
            "theirs",
            "nobodys",
        )
    refusals = [await site.b.upload("mine", base) for base in ("theirs", "nobodys")]
    bodies = {r.content.replace(b"theirs", b"?").replace(b"nobodys", b"?") for r in refusals}
    assert ([r.status_code for r in refusals], len(bodies)) == ([400, 400], 1)


async def test_lists_show_only_ones_own(site: Site) -> None:
    adapter, instance = await site.a.adapter("theirs"), await site.running()
    await site.attached(site.a, instance["id"], adapter)
    found(await site.a.post("/v1/registered-models", {"name": "secret-model", "source": "hf:x/y"}))
    for path in (
        "/v1/adapters",
        "/v1/adapters/status",
        "/v1/instances?all=true",
        "/v1/registered-models",
        "/v1/jobs",
        "/v1/keys",
        "/v1/catalog",
        "/v1/account",
    ):
        text = (await site.b.get(path)).text
        for secret in (adapter["id"], "theirs", f"tiny:{instance['id']}", "secret-model", site.a.who.account):
            assert secret not in text, (path, secret)
