"""Streams: bytes as they come, the client's `model`, an error event where they fail, upstream closed when left."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from aiohttp import web

from pillion.core.usage import Mark, Report, Told, Used
from tests.gateway.conftest import Town
from tests.gateway.site import chunk, open_stream
from tests.gateway.world import BASE


def data(raw: bytes) -> list[Any]:
    """The events' JSON, `[DONE]` as it is."""
    texts = [event.removeprefix("data: ") for event in raw.decode().split("\n\n") if event]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


async def test_chunks_arrive_one_by_one(town: Town) -> None:
    go = asyncio.Semaphore(0)

    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await open_stream(request)
        for number in range(5):
            await go.acquire()
            await response.write(chunk(body["model"], str(number)))
        await go.acquire()
        await response.write(b"data: [DONE]\n\n")
        return response

    town.a.behave = town.b.behave = slow
    go.release()
    async with town.site.post("/v1/chat/completions", town.key, {"model": "ft1:1", "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "content-length" not in answer.headers
        for number in range(5):
            # The next one is not even made until this one is here.
            event = await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 10)
            (body,) = data(event)
            assert (body["model"], body["choices"][0]["delta"]["content"]) == ("ft1:1", str(number))
            go.release()
        assert await answer.content.read() == b"data: [DONE]\n\n"


async def test_events_cut_anywhere(town: Town) -> None:
    """Every byte a packet of its own: the model is still the client's, and nothing is lost."""

    async def bytewise(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await open_stream(request)
        for byte in chunk(body["model"], "é\n\n") + b": comment\n\n" + b"data: [DONE]\n\n":
            await response.write(bytes([byte]))
        return response

    town.a.behave = town.b.behave = bytewise
    async with town.site.post("/v1/chat/completions", town.key, {"model": "ft1:1", "stream": True}) as answer:
        raw = await answer.read()
    first, comment, done = raw.split(b"\n\n")[:3]
    assert data(first)[0]["model"] == "ft1:1"
    assert data(first)[0]["choices"][0]["delta"]["content"] == "é\n\n"
    assert (comment, done) == (b": comment", b"data: [DONE]")
    assert b"adp_" not in raw


@pytest.mark.parametrize("ending", ["abort", "orderly", "half an event"])
async def test_failure_after_the_first_byte_is_an_error_event(town: Town, ending: str) -> None:
    async def fail(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await open_stream(request)
        await response.write(chunk(body["model"], "hel"))
        if ending == "half an event":
            await response.write(chunk(body["model"], "lo")[:40])
        if ending != "orderly":
            await town_has_the_first(request)
        return response

    async def town_has_the_first(request: web.Request) -> None:
        await seen.wait()
        assert request.transport is not None
        request.transport.abort()

    seen = asyncio.Event()
    town.a.behave = town.b.behave = fail
    async with town.site.post("/v1/chat/completions", town.key, {"model": "ft1:1", "stream": True}) as answer:
        assert answer.status == 200
        first = await answer.content.readuntil(b"\n\n")
        seen.set()
        rest = data(await answer.content.read())
    assert data(first)[0]["choices"][0]["delta"]["content"] == "hel"
    assert [event["error"]["code"] for event in rest] == ["stream_broken"]
    assert len(town.a.asked) + len(town.b.asked) == 1


@pytest.mark.parametrize("last", ["response.completed", "response.incomplete", "response.output_text.done"])
async def test_a_response_that_ends_in_good_order_without_its_last_event_is_not_whole(
    town: Town, last: str
) -> None:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await open_stream(request)
        for number, kind in enumerate(("response.created", last)):
            event = {"type": kind, "sequence_number": number, "response": {"model": body["model"]}}
            await response.write(f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode())
        return response

    town.a.behave = town.b.behave = answer
    document = {"model": "ft1:1", "input": "hi", "stream": True}
    async with town.site.post("/v1/responses", town.key, document) as got:
        events = [event.split("data: ") for event in (await got.text()).split("\n\n") if event]
    told = [json.loads(text) for _, text in events]
    assert [event["response"]["model"] for event in told[:2]] == ["ft1:1"] * 2
    codes = [event["error"]["code"] for event in told[2:]]
    assert codes == (["stream_broken"] if last == "response.output_text.done" else [])


async def test_other_bodies_that_fail_break_the_connection(town: Town) -> None:
    seen = asyncio.Event()

    async def fail(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "audio/wav"})
        await response.prepare(request)
        await response.write(b"RIFF")
        await seen.wait()
        assert request.transport is not None
        request.transport.abort()
        return response

    town.a.behave = town.b.behave = fail
    async with town.site.post("/v1/audio/speech", town.key, {"model": BASE}) as answer:
        assert await answer.content.readexactly(4) == b"RIFF"
        seen.set()
        with pytest.raises(Exception, match=r"not completed|disconnected|TransferEncoding"):
            await answer.content.read()


async def test_engines_error_event_is_scrubbed(town: Town) -> None:
    async def fail(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await open_stream(request)
        await response.write(chunk(body["model"], "a"))
        error = {"error": {"message": f"{body['model']} in /opt/vllm/x.py failed", "type": "E", "code": 500}}
        await response.write(b"data: " + json.dumps(error).encode() + b"\n\ndata: [DONE]\n\n")
        return response

    town.a.behave = town.b.behave = fail
    async with town.site.post("/v1/chat/completions", town.key, {"model": "ft1:1", "stream": True}) as answer:
        events = data(await answer.read())
    assert events[1]["error"]["code"] == "engine_error"
    assert "vllm" not in json.dumps(events)
    assert events[2] == "[DONE]"


async def test_client_that_leaves_closes_upstream(town: Town) -> None:
    cancelled = asyncio.Event()

    async def endless(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await open_stream(request)
        try:
            await response.write(chunk(body["model"], "a"))
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return response

    town.a.behave = town.b.behave = endless
    answer = await town.site.post("/v1/chat/completions", town.key, {"model": BASE, "stream": True})
    await answer.content.readuntil(b"\n\n")
    answer.close()
    await asyncio.wait_for(cancelled.wait(), 10)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_who_leaves_a_stream_that_says_its_usage_at_the_end_has_used_what_came(
    town: Town, path: str
) -> None:
    told: asyncio.Queue[Told] = asyncio.Queue()

    async def control(request: web.Request) -> web.StreamResponse:
        if request.path != "/internal/v1/usage":
            return web.Response(status=503)
        report = msgspec.msgpack.decode(await request.read(), type=Report)
        for one in report.told:
            told.put_nowait(one)
        mark = Mark(report.told[-1].seq if report.told else 0)
        return web.Response(body=msgspec.msgpack.encode(mark))

    async def endless(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await open_stream(request)
        for _ in range(9):
            event = {"type": "response.output_text.delta", "delta": 'a "delta\n'}
            await response.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        await asyncio.Event().wait()
        return response

    town.site.control.public = control
    town.a.behave = town.b.behave = endless
    answer = await town.site.post(path, town.key, {"model": BASE, "input": "hi", "stream": True})
    for _ in range(9):
        await answer.content.readuntil(b"\n\n")
    answer.close()
    used = await asyncio.wait_for(told.get(), 10)
    assert isinstance(used, Used)
    assert (used.status, used.completion_tokens) == ("499", 9)


async def test_a_thousand_streams_at_once(town: Town) -> None:
    """No cap anywhere: all have begun before one may end."""
    count, begun, go = 1000, asyncio.Semaphore(0), asyncio.Event()

    async def hold(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await open_stream(request)
        await response.write(chunk(body["model"], "a"))
        await go.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    async def one() -> bytes:
        async with town.site.post(
            "/v1/chat/completions", town.key, {"model": BASE, "stream": True}
        ) as answer:
            first = await answer.content.readuntil(b"\n\n")
            begun.release()
            return first + await answer.content.read()

    town.a.behave = town.b.behave = hold
    streams = [asyncio.ensure_future(one()) for _ in range(count)]
    async with asyncio.timeout(60):
        for _ in range(count):
            await begun.acquire()
        assert min(len(town.a.asked), len(town.b.asked)) > count * 0.37
        go.set()
        answers = await asyncio.gather(*streams)
    assert all(answer.endswith(b"data: [DONE]\n\n") for answer in answers)


async def test_drain_finishes_what_is_in_flight(town: Town) -> None:
    go = asyncio.Event()

    async def hold(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await open_stream(request)
        await response.write(chunk(body["model"], "a"))
        await go.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    town.a.behave = town.b.behave = hold
    async with town.site.post("/v1/chat/completions", town.key, {"model": BASE, "stream": True}) as answer:
        await answer.content.readuntil(b"\n\n")
        town.site.stop.set()
        go.set()
        assert await answer.content.read() == b"data: [DONE]\n\n"
    await asyncio.wait_for(town.site.serving, 10)


async def test_drain_deadline_ends_streams_with_an_error_event(town: Town) -> None:
    async def endless(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await open_stream(request)
        await response.write(chunk(body["model"], "a"))
        await asyncio.Event().wait()
        return response

    town.a.behave = town.b.behave = endless
    async with town.site.post("/v1/chat/completions", town.key, {"model": BASE, "stream": True}) as answer:
        await answer.content.readuntil(b"\n\n")
        town.site.stop.set()
        (error,) = data(await asyncio.wait_for(answer.content.read(), 10))
        assert error["error"]["code"] == "stream_broken"
    await asyncio.wait_for(town.site.serving, 10)


@pytest.mark.parametrize(
    ("options", "usages"),
    [
        (None, []),
        ({"include_usage": False}, []),
        ({"include_usage": True}, [{"prompt_tokens": 5, "completion_tokens": 2}]),
        (
            {"include_usage": True, "continuous_usage_stats": True},
            [{"prompt_tokens": 5, "completion_tokens": n} for n in (1, 2, 2)],
        ),
    ],
)
async def test_usage_is_always_asked_for_and_only_given_to_who_asked(
    town: Town, options: Any, usages: list[Any]
) -> None:
    """Of the engine: with every event, and at the end alone."""

    async def count(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
        response = await open_stream(request)
        for number in (1, 2):
            event = json.loads(chunk(body["model"], str(number))[6:])
            event["usage"] = {"prompt_tokens": 5, "completion_tokens": number}
            await response.write(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")
        last = {"model": body["model"], "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
        await response.write(b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")
        return response

    town.a.behave = town.b.behave = count
    document = {"model": "ft1:1", "stream": True} | ({} if options is None else {"stream_options": options})
    async with town.site.post("/v1/chat/completions", town.key, document) as answer:
        events = data(await answer.read())
    assert [event["usage"] for event in events[:-1] if "usage" in event] == usages
    assert [e["choices"][0]["delta"]["content"] for e in events[:2]] == ["1", "2"]
    assert events[-1] == "[DONE]"
    assert {event["model"] for event in events[:-1]} == {"ft1:1"}


async def test_stream_must_be_a_boolean(town: Town) -> None:
    """An engine might take "yes" for true: a stream nobody counted."""
    status, _, body = await town.site.chat(town.key, "ft1:1", stream="yes")
    assert (status, body["error"]["param"]) == (400, "stream")
