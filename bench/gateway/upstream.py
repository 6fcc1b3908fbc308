"""A mock of vLLM's server that costs as little as it can: canned answers, from one uvloop protocol.

    python bench/gateway/upstream.py --port 9101 [--core 0]

Answers POST (any path) with a chat completion of about 1 KB, or, where the body has `"stream":true`, with a stream.
What a stream does stands in its prompt, which any proxy leaves alone: `[events=16]` to send, `[rate=50]` of them a
second (0: events of 16 KB, as fast as the reader takes them) and `[id=17]`, its number in the statistics. The
answer's `model` is the one asked for. Usage is told as vLLM would: `include_usage`, `continuous_usage_stats`.

`GET /mock/stats` gives what it has counted since the last `POST /mock/reset`: connections, requests, streams that
began and ended, and for each stream that was cut off its id and when (`time.monotonic`, which one machine shares).
Other GETs say that all is well, as health checks of routers want.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import re
import socket
import time
from typing import Any

import uvloop

MODEL = re.compile(rb'"model"\s*:\s*"([^"]*)"')
STREAM = re.compile(rb'"stream"\s*:\s*true')
EVENTS = re.compile(rb"\[events=(\d+)\]")
RATE = re.compile(rb"\[rate=(\d+)\]")
ID = re.compile(rb"\[id=(\d+)\]")
USAGE = re.compile(rb'"include_usage"\s*:\s*true')
EACH = re.compile(rb'"continuous_usage_stats"\s*:\s*true')
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
FLOOD = 8
LARGE = 16 * 2**10
COUNTED = {"prompt_tokens": 210, "total_tokens": 310, "completion_tokens": 100}


def answer(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, separators=(",", ":")).encode()
    head = (
        b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: %d\r\n"
        b"content-type: application/json\r\n\r\n"
    )
    return head % len(text) + text


def completion(model: str) -> bytes:
    message = {"role": "assistant", "content": "x" * 660, "refusal": None, "tool_calls": []}
    choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    return answer(
        {
            "id": "chatcmpl-0123456789abcdef0123456789abcdef",
            "object": "chat.completion",
            "created": 1767225600,
            "model": model,
            "choices": choices,
            "usage": COUNTED,
        }
    )


def event(model: str, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
    body: dict[str, Any] = {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1767225600,
        "model": model,
        "choices": choices,
    }
    if usage is not None:
        body["usage"] = usage
    line = b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(line), line)


class Canned:
    """What is answered for one name of a model, made once."""

    def __init__(self, name: bytes) -> None:
        model = name.decode()
        delta = [{"index": 0, "delta": {"content": "word "}, "logprobs": None, "finish_reason": None}]
        self.whole = completion(model)
        self.event = event(model, delta, None)
        self.counted = event(model, delta, COUNTED)
        self.usage = event(model, [], COUNTED)
        large = [{**delta[0], "delta": {"content": "word " * (LARGE // 5)}}]
        self.large = event(model, large, COUNTED)


class Stats:
    """Since the last reset."""

    def __init__(self) -> None:
        self.connections = self.requests = self.began = self.ended = 0
        self.cut: dict[int, float] = {}

    def told(self, open_now: int) -> dict[str, Any]:
        return {**vars(self), "open": open_now, "cpu_s": time.process_time()}


class Mock:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.stats = Stats()
        self.open = 0
        self._canned: dict[bytes, Canned] = {}

    def canned(self, name: bytes) -> Canned:
        found = self._canned.get(name)
        if found is None:
            found = self._canned[name] = Canned(name)
        return found


class Server(asyncio.Protocol):
    """One connection. Requests come one after the other; a proxy's body may come in chunks."""

    def __init__(self, mock: Mock) -> None:
        self.mock = mock
        self.data = b""
        self.transport: Any = None
        self.timer: asyncio.TimerHandle | None = None
        self.left = 0
        self.paused = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.mock.stats.connections += 1
        self.mock.open += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.mock.open -= 1
        if self.timer is not None:
            self.timer.cancel()
        if self.left:
            self.mock.stats.cut[self.id] = time.monotonic()
            self.left = 0

    def data_received(self, data: bytes) -> None:
        if self.data:
            data = self.data + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.data = data
            return
        if data.startswith(b"GET "):
            self.data = b""
            self.transport.write(self._get(data))
            return
        length = LENGTH.search(data, 0, end + 2)
        if length is not None:
            whole = len(data) >= end + 4 + int(length[1])
        else:
            whole = CHUNKED.search(data, 0, end + 2) is None or data.endswith(b"0\r\n\r\n")
        if not whole:
            self.data = data
            return
        self.data = b""
        if data.startswith(b"POST /mock/reset"):
            self.mock.stats = Stats()
            self.transport.write(answer({}))
            return
        self._post(data, end)

    def _get(self, data: bytes) -> bytes:
        path = data.split(b" ", 2)[1]
        if path == b"/mock/stats":
            return answer(self.mock.stats.told(self.mock.open))
        if path == b"/v1/models":
            return answer(
                {"object": "list", "data": [{"id": "mock", "object": "model", "max_model_len": 4096}]}
            )
        return answer(
            {"model_path": "mock", "served_model_name": "mock", "is_generation": True, "status": "ready"}
        )

    def _post(self, data: bytes, end: int) -> None:
        self.mock.stats.requests += 1
        name = MODEL.search(data, end)
        canned = self.mock.canned(name[1] if name else b"mock")
        if STREAM.search(data, end) is None:
            self.transport.write(canned.whole)
            return
        events, rate, number = EVENTS.search(data, end), RATE.search(data, end), ID.search(data, end)
        self.left = int(events[1]) if events else 16
        self.id = int(number[1]) if number else 0
        self.event = canned.counted if EACH.search(data, end) else canned.event
        self.last = (canned.usage if USAGE.search(data, end) else b"") + LAST
        per_second = int(rate[1]) if rate else 50
        self.step = 1 / per_second if per_second else 0.0
        if not per_second:
            self._small_buffer()
            self.event = canned.large
        self.next = self.mock.loop.time()
        self.mock.stats.began += 1
        self.transport.write(STREAM_HEAD + self.event)
        self._written()
        if self.left:
            self._go_on()

    def _small_buffer(self) -> None:
        """What is sent without end shall not fill megabytes of the kernel's."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**18)

    def _go_on(self) -> None:
        if self.step:
            self.next += self.step
            self.timer = self.mock.loop.call_at(self.next, self._tick)
        else:
            self.timer = self.mock.loop.call_later(0, self._flood)

    def _tick(self) -> None:
        if not self.paused:
            self.transport.write(self.event)
            self._written()
        if self.left:
            self._go_on()

    def _flood(self) -> None:
        """As much as the reader takes, in large pieces: the mock must not be what the others wait for."""
        if self.paused or not self.left:
            return
        piece = min(FLOOD, self.left - 1)
        self.transport.write(self.event * piece)
        self.left -= piece
        if self.left == 1:
            self.transport.write(self.event)
            self._written()
        else:
            self._go_on()

    def _written(self) -> None:
        self.left -= 1
        if not self.left:
            self.transport.write(self.last)
            self.mock.stats.ended += 1

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.left and not self.step:
            self._go_on()


async def serve(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    mock = Mock(loop)
    server = await loop.create_server(lambda: Server(mock), host, port, backlog=4096)
    gc.freeze()
    gc.disable()
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9101)
    parser.add_argument("--core", type=int, help="the one processor to run on")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    uvloop.run(serve(options.host, options.port))


if __name__ == "__main__":
    main()
