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
is the same of the process that `--upstream PID` names. `others`: the share of one of the three `--cores` (the mock's, the
generator's, the system's) that went to anything else; more than a few hundredths, and the machine was not quiet.
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

import uvloop
from clients import Asker, Reader, Staller, Tally, Window, processor_s, quantiles, request, resident_bytes

WARM_S = 0.5


class Load:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        parts = urlsplit(options.url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.window = Window(options.watch, options.upstream, options.cores)
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
        """Streams alone; while 100 stalled readers' buffers fill; and beside them once nothing moves any more."""
        options = self.options
        alone, filling, beside = Tally(), Tally(), Tally()
        readers = await self.open_streams(alone, again=True)
        await asyncio.sleep(options.warm)
        self.window.open()
        before, cpu = resident_bytes(options.watch), processor_s(options.watch)
        await asyncio.sleep(options.seconds)
        usual = (processor_s(options.watch) - cpu) / options.seconds
        self._tell(readers, filling)
        stallers = await self._stallers()
        fill_s = await self._steady(1.3 * usual + 0.05)
        self._tell(readers, beside)
        self.window.open()
        await asyncio.sleep(options.seconds)
        self.window.close()
        after = resident_bytes(options.watch)
        self.window.stopped = True
        return {
            "alone": self.found(alone),
            "filling": self.found(filling),
            "beside": self.found(beside),
            "fill_s": fill_s,
            "stalled": options.stalled,
            "read": sum(stalled.read for stalled in stallers),
            "bytes_each": round((after - before) / max(1, options.stalled)),
        }

    async def _stallers(self) -> list[Staller]:
        long, made = self.streams_asked(0, 200_000), []
        for _ in range(self.options.stalled):
            stalled: Staller = await self.connect(Staller, small=True)
            stalled.stall(next(long)[1])
            made.append(stalled)
        return made

    async def _steady(self, share: float) -> float:
        """Waits until the watched processes take no more than that share of a processor; seconds, 30 at most."""
        began = time.perf_counter()
        while (took := time.perf_counter() - began) < 30:
            cpu = processor_s(self.options.watch)
            await asyncio.sleep(0.5)
            if (processor_s(self.options.watch) - cpu) / 0.5 <= share:
                break
        return round(took, 1)

    def _tell(self, readers: list[Reader], tally: Tally) -> None:
        for reader in readers:
            reader.tally = tally
            reader.last = 0.0

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
    parser.add_argument("--cores", type=int, nargs=3, default=[], metavar=("MOCK", "LOAD", "SYSTEM"))
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
