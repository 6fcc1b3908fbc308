"""The clients that the load generator is made of: raw protocols with canned requests, and what they count."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httptools

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


def core_busy_s(core: int) -> float:
    """Seconds that a processor was not idle, what a hypervisor gave to others included."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _wait, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) / TICKS
    return 0.0


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
    """What is measured between `open` and `close`. `cores`: of the mock, the generator and the system under test."""

    def __init__(self, pids: list[int], upstream: list[int], cores: list[int]) -> None:
        self.pids, self.upstream, self.cores = pids, upstream, cores
        self.measuring = False
        self.stopped = False
        self.failed = 0
        self.first_failure = ""
        self.sampled: dict[str, float] = {}

    def open(self) -> None:
        self.began = time.perf_counter()
        self.before = self._taken()
        self.measuring = True

    def close(self) -> None:
        self.measuring = False
        took = time.perf_counter() - self.began
        after = self._taken()
        own, system, upstream, *cores = (now - then for now, then in zip(after, self.before, strict=True))
        mine = [upstream, own, system]
        if self.cores[:1] == self.cores[1:2]:  # the mock and the generator share one
            mine[0] = mine[1] = upstream + own
        others = [busy - part for busy, part in zip(cores, mine, strict=False)]
        self.sampled = {
            "seconds": round(took, 3),
            "busy": round(own / took, 3),
            "cpu_s": round(system, 3),
            "upstream_busy": round(upstream / took, 3),
            "others": round(max([0.0, *others]) / took, 3),
        }

    def _taken(self) -> list[float]:
        """Processor seconds: this process, the system, the mock, and each of the cores."""
        mine = [time.process_time(), processor_s(self.pids), processor_s(self.upstream)]
        return mine + [core_busy_s(core) for core in self.cores]

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
            if self.seen == found:
                tally.ttft.append(now - self.asked)
            elif self.last:
                tally.gaps.append(now - self.last)
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
