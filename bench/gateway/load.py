"""The load generator: canned requests from one uvloop process, latencies in µs, JSON on standard output.

    python bench/gateway/load.py --url http://127.0.0.1:9101 --connections 32 --seconds 3 [--core 1]
    python bench/gateway/load.py --url … --mode streams --connections 400 --events 400 --rate 50
    python bench/gateway/load.py --url … --mode leave --connections 200
    python bench/gateway/load.py --url … --mode stall --stalled 100 --connections 100

Modes: `requests` is a closed loop, one request in flight on each connection. `streams` opens that many streams,
spread over `--ramp` seconds, each of `--events` events, again and again until `--seconds` are over, or once without.
`leave` closes streams half-way and says when. `stall` has `--stalled` readers that never read beside streams that do.
`--targets FILE` holds lines of `key<TAB>model` that requests take turns with; else `--key` and `--model`.
`--watch PID` (more than once) adds the processor time those processes took while it measured.

`busy` is the share of its processor that the generator itself took: from 0.9 on, it measured itself. `upstream_busy`
is the same of the process that `--upstream PID` names.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

WARM_S = 0.5
TICKS = os.sysconf("SC_CLK_TCK")
MARK = b'"content":"word '
DONE = b"data: [DONE]"


def request(host: str, key: str, model: str, *, stream: str = "") -> bytes:
    """A chat completion of 1 KB as an SDK would send it; `stream` is the prompt's orders to the mock."""
    prompt = stream + "y" * (880 - len(stream))
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    body["max_tokens"] = 100
    if stream:
        body["stream"] = True
    text = json.dumps(body, separators=(",", ":")).encode()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\n"
        f"Content-Type: application/json\r\nUser-Agent: OpenAI/Python 2.1.0\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: {len(text)}\r\n\r\n"
    ).encode() + text


def processor_s(pids: list[int]) -> float:
    """Processor seconds that these processes have taken, all threads."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def resident_bytes(pids: list[int]) -> int:
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * page


def quantiles(values: list[float], unit: float = 1e6) -> dict[str, float]:
    """p50, p99 and the largest, in µs or what `unit` makes of seconds."""
    if not values:
        return {}
    values = sorted(values)
    at = {"p50": values[len(values) // 2], "p99": values[int(len(values) * 0.99)], "max": values[-1]}
    return {name: round(value * unit, 1) for name, value in at.items()}


class Window:
    """What is measured between `open` and `close`."""

    def __init__(self, pids: list[int], upstream: list[int]) -> None:
        self.pids, self.upstream = pids, upstream
        self.measuring = False
        self.stopped = False
        self.failed = 0
        self.first_failure = ""
        self.sampled: dict[str, float] = {}

    def open(self) -> None:
        self.began, self.cpu = time.perf_counter(), time.process_time()
        self.watched, self.upstream_cpu = processor_s(self.pids), processor_s(self.upstream)
        self.measuring = True

    def close(self) -> None:
        self.measuring = False
        took = time.perf_counter() - self.began
        self.sampled = {
            "seconds": round(took, 3),
            "busy": round((time.process_time() - self.cpu) / took, 3),
            "cpu_s": round(processor_s(self.pids) - self.watched, 3),
            "upstream_busy": round((processor_s(self.upstream) - self.upstream_cpu) / took, 3),
        }

    def fail(self, what: bytes | str) -> None:
        self.failed += 1
        if not self.first_failure:
            self.first_failure = what.decode(errors="replace") if isinstance(what, bytes) else what
            self.first_failure = self.first_failure[:400]


class Asker(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, window: Window, requests: Iterator[bytes], latencies: list[float]) -> None:
        self.window, self.requests, self.latencies = window, requests, latencies
        self.data = b""
        self.need = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.window.stopped:
            self.window.fail(f"connection lost: {exc!r}")

    def _ask(self) -> None:
        self.asked = time.perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        if self.data:
            data = self.data + data
        if not self.need:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.data = data
                return
            if not data.startswith(b"HTTP/1.1 200"):
                self.window.fail(data)
            self.need = self._length(data, end)
        if len(data) < self.need if self.need > 0 else not data.endswith(b"0\r\n\r\n"):
            self.data = data
            return
        self.need, self.data = 0, b""
        if self.window.measuring:
            self.latencies.append(time.perf_counter() - self.asked)
        if not self.window.stopped:
            self._ask()

    def _length(self, data: bytes, end: int) -> int:
        """Of the whole answer; -1 where it comes in chunks."""
        at = data.find(b"ontent-", 0, end)
        while at >= 0:
            if data[at + 7 : at + 14].lower() == b"length:":
                return end + 4 + int(data[at + 14 : data.index(b"\r", at)])
            at = data.find(b"ontent-", at + 7, end)
        return -1


class Tally:
    """What streams found."""

    def __init__(self) -> None:
        self.events = self.whole = self.short = 0
        self.ttft: list[float] = []
        self.gaps: list[float] = []
        self.left: dict[int, float] = {}


class Reader(asyncio.Protocol):
    """One connection that reads streams, one after the other. `again`: whether there is a next."""

    def __init__(
        self, window: Window, tally: Tally, requests: Iterator[tuple[int, bytes, int]], again: bool
    ) -> None:
        self.window, self.tally, self.requests, self.again = window, tally, requests, again
        self.over = asyncio.get_running_loop().create_future()
        self.leave_after = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self.id, text, self.wanted = next(self.requests)
        self.seen, self.tail, self.done = 0, b"", False
        self.last = 0.0
        self.parser = httptools.HttpResponseParser(self)
        self.asked = time.perf_counter()
        self.transport.write(text)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        now = time.perf_counter()
        text = self.tail + body
        found = text.count(MARK)
        if found:
            self._events(found, now)
            text = text[text.rindex(MARK) + len(MARK) :]
        if DONE in text:
            self.done = True
        self.tail = text[-len(MARK) + 1 :]

    def _events(self, found: int, now: float) -> None:
        self.seen += found
        window, tally = self.window, self.tally
        if window.measuring:
            tally.events += found
            if self.last:
                tally.gaps.append(now - self.last)
            else:
                tally.ttft.append(now - self.asked)
        self.last = now
        if self.leave_after and self.seen >= self.leave_after:
            self.tally.left[self.id] = time.monotonic()
            self.transport.abort()

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        if status != 200:
            self.window.fail(f"stream answered {status}: {self.tail!r}")
        if self.done and self.seen == self.wanted:
            self.tally.whole += 1
        else:
            self.tally.short += 1
        if self.again and not self.window.stopped and status == 200:
            asyncio.get_running_loop().call_soon(self._ask)
        else:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            if not self.leave_after and not self.window.stopped:
                self.tally.short += 1
                self.window.fail(f"stream lost after {self.seen} of {self.wanted} events: {exc!r}")
            self._finish()

    def _finish(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


class Staller(asyncio.Protocol):
    """Asks for a long answer and never reads it."""

    read = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.read += len(data)

    def stall(self, text: bytes) -> None:
        """Not before the connection stands: the loop begins to read it then."""
        self.transport.pause_reading()
        self.transport.write(text)


class Load:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        parts = urlsplit(options.url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.window = Window(options.watch, options.upstream)
        self.targets = [(options.key, options.model)]
        if options.targets:
            lines = Path(options.targets).read_text().splitlines()
            self.targets = [(key, model) for key, model in (line.split("\t") for line in lines)]
        self.numbers = itertools.count(options.first_id)

    async def connect(self, make: Any, small: bool = False) -> Any:
        sock = socket.socket()
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (self.host, self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return (await loop.create_connection(make, sock=sock))[1]

    async def requests(self) -> dict[str, Any]:
        options, host = self.options, f"{self.host}:{self.port}"
        canned = [request(host, key, model) for key, model in self.targets]
        turns, latencies = itertools.cycle(canned), list[float]()
        for _ in range(options.connections):
            await self.connect(lambda: Asker(self.window, turns, latencies))
        await asyncio.sleep(options.warm)
        self.window.open()
        await asyncio.sleep(options.seconds)
        self.window.close()
        self.window.stopped = True
        rate = len(latencies) / self.window.sampled["seconds"]
        return {"rps": round(rate, 1), "requests": len(latencies), **quantiles(latencies)}

    def streams_asked(self, rate: int, events: int) -> Iterator[tuple[int, bytes, int]]:
        host = f"{self.host}:{self.port}"
        for key, model in itertools.cycle(self.targets):
            number = next(self.numbers)
            orders = f"[events={events}][rate={rate}][id={number}]"
            yield number, request(host, key, model, stream=orders), events

    async def open_streams(self, tally: Tally, again: bool, leave_after: int = 0) -> list[Reader]:
        options = self.options
        asked = self.streams_asked(options.rate, options.events)
        readers: list[Reader] = []
        began = time.perf_counter()

        def make() -> Reader:
            reader = Reader(self.window, tally, asked, again)
            reader.leave_after = leave_after
            return reader

        for number in range(options.connections):
            pause = began + options.ramp * number / options.connections - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            readers.append(await self.connect(make))
        return readers

    async def streams(self) -> dict[str, Any]:
        """The window opens when all streams have begun, or at once where they are told to come at once."""
        options, tally = self.options, Tally()
        if not options.ramp:
            self.window.open()
        readers = await self.open_streams(tally, again=options.seconds > 0)
        if options.ramp:
            await asyncio.sleep(options.warm)
            self.window.open()
        await asyncio.sleep(options.seconds or options.window)
        self.window.close()
        self.window.stopped = bool(options.seconds)
        await asyncio.wait([r.over for r in readers], timeout=options.patience)
        late = sum(not r.over.done() for r in readers)
        return {**self.found(tally), "late": late}

    def found(self, tally: Tally) -> dict[str, Any]:
        return {
            "events": tally.events,
            "whole": tally.whole,
            "short": tally.short,
            "ttft_ms": quantiles(tally.ttft, 1e3),
            "gap_ms": quantiles(tally.gaps, 1e3),
        }

    async def leave(self) -> dict[str, Any]:
        """Every stream is left at its third event; when, by id."""
        tally = Tally()
        self.window.open()
        readers = await self.open_streams(tally, again=False, leave_after=3)
        await asyncio.wait([r.over for r in readers], timeout=self.options.patience)
        self.window.close()
        return {"left": tally.left}

    async def stall(self) -> dict[str, Any]:
        """Streams alone, then beside readers that stall: the gaps of both, and what the stalled ones cost."""
        options, alone, beside = self.options, Tally(), Tally()
        readers = await self.open_streams(alone, again=True)
        await asyncio.sleep(options.warm)
        self.window.open()
        await asyncio.sleep(options.seconds)
        self.window.measuring = False
        before = resident_bytes(options.watch)
        long = self.streams_asked(0, 200_000)
        stallers: list[Staller] = []
        for _ in range(options.stalled):
            stalled = await self.connect(Staller, small=True)
            stalled.stall(next(long)[1])
            stallers.append(stalled)
        await asyncio.sleep(2.0)
        for reader in readers:
            reader.tally = beside
        self.window.open()
        await asyncio.sleep(options.seconds)
        self.window.close()
        after = resident_bytes(options.watch)
        self.window.stopped = True
        return {
            "alone": self.found(alone),
            "beside": self.found(beside),
            "stalled": options.stalled,
            "read": sum(stalled.read for stalled in stallers),
            "bytes_each": round((after - before) / max(1, options.stalled)),
        }

    async def run(self) -> None:
        gc.freeze()
        gc.disable()
        asyncio.get_running_loop().set_exception_handler(_give_up)
        found = await getattr(self, self.options.mode)()
        window = self.window
        found |= {**window.sampled, "failed": window.failed, "failure": window.first_failure}
        print(json.dumps(found), flush=True)
        os._exit(0)  # connections are cut, not closed one by one


def _give_up(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A generator with a fault of its own measures nothing."""
    loop.default_exception_handler(context)
    os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:9101")
    parser.add_argument("--mode", choices=("requests", "streams", "leave", "stall"), default="requests")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=0.0, help="how long is measured (requests: 3)")
    parser.add_argument("--warm", type=float, default=WARM_S, help="seconds before that")
    parser.add_argument("--window", type=float, default=5.0, help="streams once: how long is measured")
    parser.add_argument("--ramp", type=float, default=1.0, help="seconds over which streams begin")
    parser.add_argument(
        "--patience", type=float, default=20.0, help="seconds that late streams are waited for"
    )
    parser.add_argument("--events", type=int, default=100, help="of each stream")
    parser.add_argument("--rate", type=int, default=50, help="events per second of each stream")
    parser.add_argument("--stalled", type=int, default=100)
    parser.add_argument("--first-id", type=int, default=1)
    parser.add_argument("--key", default="none")
    parser.add_argument("--model", default="mock")
    parser.add_argument("--targets")
    parser.add_argument("--watch", type=int, action="append", default=[])
    parser.add_argument("--upstream", type=int, action="append", default=[], help="the mock's process id")
    parser.add_argument("--core", type=int, help="the one processor to run on")
    options = parser.parse_args()
    if options.mode in ("requests", "stall") and not options.seconds:
        options.seconds = 3.0
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    try:
        uvloop.run(Load(options).run())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
