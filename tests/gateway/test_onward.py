"""What goes on to control and to containers as it is."""

from __future__ import annotations

import asyncio
import hashlib
import resource
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from pillion.core.snapshot import Model
from tests.gateway.conftest import Town
from tests.gateway.site import free_url
from tests.gateway.world import OTHER, make_instance, make_key, make_replica


async def test_everything_else_goes_to_control_verbatim(town: Town) -> None:
    seen: list[web.Request] = []

    async def public(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        body = await request.read()
        headers = {"content-encoding": "gzip", "x-mine": "1", "set-cookie": "a=b", "server": "control"}
        return web.Response(status=418, body=b"\x1f\x8b" + body, headers=headers)

    town.control.public = public
    headers = {
        "authorization": f"Bearer {town.key}",
        "x-forwarded-for": "1.2.3.4",
        "connection": "x-hop",
        "x-hop": "1",
        "x-request-id": "mine",
        "accept-encoding": "br",
    }
    url = f"{town.site.url}/v1/adapters/ft10:1/../%2e?q=%20a+b&q=2"
    async with town.site.client.patch(url, data=b"raw", headers=headers) as answer:
        assert answer.status == 418
        assert answer.headers["x-mine"] == "1"
        assert answer.headers["set-cookie"] == "a=b"
        assert answer.headers.getall("x-request-id") == ["mine"]
        assert len(answer.headers.getall("date")) == 1
    (request,) = seen
    assert request.method == "PATCH"
    assert request.headers["authorization"] == f"Bearer {town.key}"
    assert request.headers["x-forwarded-for"] == "1.2.3.4, 127.0.0.1"
    assert request.headers["x-request-id"] == "mine"
    assert request.headers["accept-encoding"] == "br"
    assert request.headers["host"] == town.site.url.removeprefix("http://")
    assert request.headers["content-length"] == "3"
    assert "x-hop" not in request.headers


async def test_paths_are_not_touched(town: Town) -> None:
    host, port = town.site.url.removeprefix("http://").split(":")
    for path in (
        "/",
        "/docs",
        "/openapi.json",
        "/v1/adapters/a%2Fb/../%2e?q=%20a+b&q=2",
        "//v1/x",
        "/v1/chat/completion",
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert f'"path": "{path}"'.encode() in answer


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("BREW", "/v1/adapters", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"),
    ],
)
async def test_what_no_path_takes_is_told_here(town: Town, method: str, path: str, allowed: str) -> None:
    async with town.site.client.request(method, town.site.url + path, data=b"{}") as answer:
        assert (answer.status, answer.headers["allow"]) == (405, allowed)
        assert (await answer.json())["error"]["code"] == "invalid_request"


async def test_head_and_empty_answers(town: Town) -> None:
    async def public(request: web.Request) -> web.StreamResponse:
        if request.method == "DELETE":
            return web.Response(status=204)
        return web.Response(body=b"12345")

    town.control.public = public
    async with town.site.client.head(f"{town.site.url}/v1/files/1") as answer:
        assert (answer.status, answer.headers["content-length"]) == (200, "5")
    async with town.site.client.delete(f"{town.site.url}/v1/files/1") as answer:
        assert (answer.status, await answer.read()) == (204, b"")


async def test_answers_in_one_piece_have_lengths_of_their_own(town: Town) -> None:
    """One head before bodies of many lengths: each answer ends where it ends."""
    bodies = [b'"' + b"x" * length + b'"' for length in (0, 50, 7, 500, 3)]
    waiting = list(bodies)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await reader.readuntil(b"\r\n\r\n")) and waiting:
            body = waiting.pop(0)
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            writer.write(head % len(body) + body)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    raw = make_replica("raw", url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await town.publish(town.entry, make_instance(5, raw, openai_compatible=False))
    url = f"{town.site.url}/inference-instances/5/proxy/x"
    for body in bodies:
        async with town.site.client.get(url, headers={"authorization": f"Bearer {town.key}"}) as got:
            assert (got.status, await got.read()) == (200, body)
    server.close()


async def test_uploads_and_downloads_stream_in_bounded_memory(town: Town) -> None:
    """192 MiB through the gateway, which holds no more than what is on the wire."""
    part, count = b"x" * 2**20, 192
    expected = hashlib.sha256(part * count).hexdigest()

    async def public(request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            digest = hashlib.sha256()
            async for data in request.content.iter_any():
                digest.update(data)
            return web.json_response(
                {"sha256": digest.hexdigest(), "length": request.headers.get("content-length")}
            )
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(count):
            await response.write(part)
        return response

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield part

    town.control.public = public
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    headers = {"content-length": str(count * len(part))}
    async with town.site.client.post(
        f"{town.site.url}/v1/adapters/upload", data=upload(), headers=headers
    ) as answer:
        assert await answer.json() == {"sha256": expected, "length": str(count * len(part))}
    async with town.site.client.post(f"{town.site.url}/v1/adapters/upload", data=upload()) as answer:
        assert await answer.json() == {"sha256": expected, "length": None}
    got = hashlib.sha256()
    async with town.site.client.get(f"{town.site.url}/v1/adapters/1/download") as answer:
        async for data in answer.content.iter_any():
            got.update(data)
    assert got.hexdigest() == expected
    # KiB on Linux; client, gateway and control all live in this process.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.parametrize("welcome", [True, False])
async def test_expect_100_continue_is_controls_to_give(town: Town, welcome: bool) -> None:
    """What control refuses from the head alone is never uploaded."""

    async def public(request: web.Request) -> web.StreamResponse:
        if not welcome:
            return web.json_response({}, status=401)
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return web.json_response({"got": len(await request.read())}, status=201)

    town.control.public = public
    host, port = town.site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/adapters/upload HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
    )
    first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    if welcome:
        assert first.startswith(b"HTTP/1.1 100")
        writer.write(b"body")
        first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert first.startswith(b"HTTP/1.1 201" if welcome else b"HTTP/1.1 401")
    writer.close()


async def test_events_of_control_come_as_they_are_made(town: Town) -> None:
    go = asyncio.Event()

    async def follow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"stage":"pulling"}\n')
        await go.wait()
        await response.write(b'{"stage":"ready"}\n')
        return response

    town.control.public = follow
    async with town.site.client.get(f"{town.site.url}/v1/instances/1/events?follow=true") as answer:
        assert await asyncio.wait_for(answer.content.readline(), 10) == b'{"stage":"pulling"}\n'
        go.set()
        assert await answer.content.read() == b'{"stage":"ready"}\n'


async def test_client_that_leaves_a_long_poll_frees_control(town: Town) -> None:
    polled, cancelled = asyncio.Event(), asyncio.Event()

    async def poll(request: web.Request) -> web.StreamResponse:
        polled.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return web.Response()

    town.control.public = poll
    waiting = asyncio.ensure_future(town.site.client.get(f"{town.site.url}/v1/jobs/1?follow=true"))
    await asyncio.wait_for(polled.wait(), 10)
    waiting.cancel()
    await asyncio.wait_for(cancelled.wait(), 10)


async def raw(request: web.Request, body: dict[str, object]) -> web.StreamResponse:
    return web.Response(status=201, body=b"\x00\x01" + request.raw_path.encode(), headers={"x-mine": "yes"})


async def test_containers_own_api(town: Town) -> None:
    town.b.behave = raw
    gone = make_replica("gone", url=free_url())
    custom = make_instance(
        5,
        gone,
        make_replica("b", url=town.b.url),
        model="diffuser",
        openai_compatible=False,
        custom_api_path="/generate",
    )
    model = Model("diffuser", town.adapter.account, "custom", False)
    await town.publish(town.entry, town.adapter, model, custom, town.instance(town.a))
    headers = {
        "authorization": f"Bearer {town.key}",
        "cookie": "s=1",
        "x-pillion-adapter-id": "1",
        "x-theirs": "2",
    }
    for method in ("PUT", "GET"):
        data = b'{"a": 1}' if method == "PUT" else None
        url = f"{town.site.url}/inference-instances/5/proxy/generate/x%20y?seed=1"
        async with town.site.client.request(method, url, data=data, headers=headers) as answer:
            assert (answer.status, await answer.read()) == (201, b"\x00\x01/generate/x%20y?seed=1")
            assert (answer.headers["x-mine"], answer.headers["x-pillion-replica"]) == ("yes", "b")
    request, body = town.b.asked[0]
    assert (request.method, body) == ("PUT", {"a": 1})
    assert request.headers["authorization"] == "Bearer infer-b"
    assert request.headers["x-theirs"] == "2"
    assert not {"cookie", "x-pillion-adapter-id"} & {name.lower() for name in request.headers}


async def test_whose_containers(town: Town) -> None:
    theirs, their_entry = make_key(OTHER)
    manage, manage_entry = make_key(town.adapter.account, "manage")
    custom = make_instance(5, make_replica("b", url=town.b.url), openai_compatible=False)
    await town.publish(town.entry, their_entry, manage_entry, custom, town.instance(town.a))
    answers = []
    for key, path, status in (
        (theirs, "5/proxy/x", 404),
        (theirs, "77/proxy/x", 404),
        (theirs, "05/proxy/x", 404),
        (town.key, "x/proxy/x", 404),
        (town.key, "1/proxy/x", 404),
        (manage, "5/proxy/x", 403),
        ("pil_nonsense", "5/proxy/x", 401),
    ):
        async with town.site.post(f"/inference-instances/{path}", key, {}) as answer:
            assert answer.status == status, path
            answers.append(await answer.read())
    assert answers[0] == answers[1] == answers[2] == answers[3]
    assert not town.b.asked


async def test_a_container_of_which_no_replica_is_ready(town: Town) -> None:
    custom = make_instance(5, make_replica("b", url=town.b.url, ready=False), openai_compatible=False)
    await town.publish(town.entry, town.adapter, custom, town.instance(town.a))
    async with town.site.post("/inference-instances/5/proxy/x", town.key, {}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (503, "no_healthy_replica")
        assert "retry-after" in answer.headers


async def test_what_breaks_is_not_short_and_whole_to_an_old_client(town: Town) -> None:
    """To a client of HTTP/1.0, as some proxies are, the end of a connection is the end of an answer without a length."""
    came = asyncio.Event()

    async def public(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await came.wait()
        assert request.transport is not None
        request.transport.abort()
        return response

    town.control.public = public
    host, port = town.site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /v1/files/f/content HTTP/1.0\r\nhost: x\r\n\r\n")
    assert (await reader.readuntil(b"first")).startswith(b"HTTP/1.1 200")
    came.set()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 10)
    writer.close()


@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("DELETE", 2), ("PATCH", 1)])
async def test_what_may_not_be_done_twice_is_not_asked_twice(town: Town, method: str, times: int) -> None:
    """A connection that has answered before is lost: perhaps for its age, perhaps while the request was worked on."""
    seen: list[str] = []

    async def work(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        seen.append(request.method)
        if len(seen) > 1:
            assert request.transport is not None
            request.transport.abort()
        return web.Response()

    town.b.behave = work
    custom = make_instance(5, make_replica("b", url=town.b.url), openai_compatible=False)
    await town.publish(town.entry, town.adapter, custom, town.instance(town.a))
    headers = {"authorization": f"Bearer {town.key}"}
    for one, status in (("GET", 200), (method, 503)):
        url = f"{town.site.url}/inference-instances/5/proxy/x"
        async with town.site.client.request(one, url, headers=headers) as answer:
            assert answer.status == status
    assert seen == ["GET"] + [method] * times
