"""What one tenant that floods a shared pool does to nine that keep within their limits, with and without fairness.

    make bench-fairness        floods of requests, of cold adapters, of uploads, and all of them at once

`pillion serve` runs with a pool of one simulated engine, which takes 16 requests at a time. Nine tenants call an adapter of
their own now and then; the tenth floods. Gateway, control, agent, loads and evictions are real. Without: the same Pillion
with all limits of this kind out of the way. Times are from a request to the end of its answer.
Written to bench/results/fairness.json: `<with|without>.<flood>.{p50_ms, p99_ms, requests, failed, greedy}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from pillion.sdk import Pillion
from placement import BASE, say, until, weights

RESULTS = Path(__file__).resolve().parent / "results" / "fairness.json"
MODEST, BATCH, SLOTS = 9, 16, 16
GREEDY_ADAPTERS = 20
OPTIONS = {"ttft_ms": 20, "tokens_per_s": 40, "max_num_seqs": BATCH, "load_ms_per_mb": 200_000}
WITH = ""
NO_LIMIT = 1_000_000
WITHOUT = (
    f"[limits]\npool_requests = {NO_LIMIT}\npool_waiting = {NO_LIMIT}\npool_share = 1.0\n\n[tiers]\n"
    + "".join(f"shared_{name} = {NO_LIMIT}\n" for name in ("requests", "loads_per_minute", "uploads"))
)
SETTINGS = {"with": WITH, "without": WITHOUT}
UPLOAD = os.urandom(4 * 2**20)
BACK_OFF_S = 0.25


@dataclass(frozen=True)
class Tenant:
    key: str
    models: tuple[str, ...]


@dataclass
class Seen:
    """Of one flood: the modest tenants' times in seconds, what was no answer, and how the greedy one's asks ended."""

    times: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    greedy: Counter[str] = field(default_factory=Counter)
    cold: int = 0

    def table(self) -> dict[str, Any]:
        cuts = statistics.quantiles(self.times, n=100, method="inclusive")
        return {
            "p50_ms": 1000 * cuts[49],
            "p99_ms": 1000 * cuts[98],
            "requests": len(self.times) + self.failed.total(),
            "cold": self.cold,
            "failed": dict(self.failed),
            "greedy": dict(self.greedy),
        }


@dataclass
class Place:
    http: aiohttp.ClientSession
    url: str
    tenants: Sequence[Tenant]

    async def call(self, tenant: Tenant, model: str, tokens: int) -> tuple[int, bool]:
        """Status, and whether it waited for a load."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens}
        headers = {"authorization": f"Bearer {tenant.key}"}
        async with self.http.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as answer:
            await answer.read()
            return answer.status, "x-pillion-cold" in answer.headers

    async def upload(self, tenant: Tenant) -> int:
        """Bytes that are no adapter, as a version of one: they are received, looked at and refused."""
        form = aiohttp.FormData()
        form.add_field("file", UPLOAD, filename="adapter_model.safetensors")
        headers = {"authorization": f"Bearer {tenant.key}"}
        async with self.http.post(
            f"{self.url}/v1/adapters/a0/versions", data=form, headers=headers
        ) as answer:
            await answer.read()
            return answer.status


Flood = Callable[[Place, Seen, int], Awaitable[None]]


async def requests(place: Place, seen: Seen, number: int) -> None:
    """Long answers of one adapter, as fast as they come."""
    greedy = place.tenants[0]
    status, _ = await place.call(greedy, greedy.models[0], 32)
    await ended(seen, f"requests {status}", status)


async def adapters(place: Place, seen: Seen, number: int) -> None:
    """One adapter after the other."""
    greedy = place.tenants[0]
    status, _ = await place.call(greedy, greedy.models[number % GREEDY_ADAPTERS], 4)
    await ended(seen, f"adapters {status}", status)


async def uploads(place: Place, seen: Seen, number: int) -> None:
    status = await place.upload(place.tenants[0])
    await ended(seen, f"uploads {status}", status if status != 422 else 200)


async def ended(seen: Seen, what: str, status: int) -> None:
    seen.greedy[what] += 1
    if status != 200:
        await asyncio.sleep(BACK_OFF_S)


# At once, of each kind.
FLOODS: dict[str, tuple[tuple[Flood, int], ...]] = {
    "none": (),
    "requests": ((requests, 200),),
    "uploads": ((uploads, 12),),  # before the next: what that leaves in the slots is not its doing
    "cold adapters": ((adapters, 32),),
    "all": ((requests, 200), (adapters, 32), (uploads, 12)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of each flood that count")
    parser.add_argument(
        "--warm-up", type=float, default=5.0, help="seconds at the start of each that do not count"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="requests per second of each modest tenant")
    parser.add_argument("--only", choices=SETTINGS, help="with or without alone")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--results", type=Path, default=RESULTS)
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what it started ends with it
    found: dict[str, dict[str, Any]] = {}
    for name, settings in SETTINGS.items() if wanted.only is None else [(wanted.only, SETTINGS[wanted.only])]:
        with tempfile.TemporaryDirectory() as scratch, server(Path(scratch), settings) as url:
            tenants = made(url, Path(scratch))
            found[name] = asyncio.run(measured(url, tenants, wanted))
    report(wanted, found)


@contextmanager
def server(scratch: Path, settings: str) -> Iterator[str]:
    """A Pillion with the pool, in a data directory that ends with it."""
    (scratch / "model").mkdir()
    (scratch / "model" / "config.json").write_text(json.dumps(BASE))
    options = ", ".join(f"{name} = {value}" for name, value in OPTIONS.items())
    config = scratch / "pillion.toml"
    config.write_text(
        f'{settings}\n[[models]]\nname = "tiny"\nsource = "path:{scratch / "model"}"\nengine = "sim"\n'
        f'options = {{{options}}}\n\n[[pools]]\nmodel = "tiny"\nmax_adapters = {SLOTS}\n'
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "pillion", "serve", "--config", str(config)]
    argv += ["--data-dir", str(scratch / "data"), "--port", str(port)]
    with (scratch / "serve.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: httpx.get(f"{url}/readyz").status_code == 200, scratch / "serve.log")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def made(url: str, scratch: Path) -> list[Tenant]:
    """The greedy tenant first; each with its adapters. Returns once the pool answers."""
    admin = (scratch / "data" / "admin-key").read_text().strip()
    tenants = [tenant(url, admin, scratch, n, GREEDY_ADAPTERS if n == 0 else 1) for n in range(MODEST + 1)]

    def answers() -> bool:
        body = {"model": tenants[1].models[0], "messages": [{"role": "user", "content": "hi"}]}
        headers = {"authorization": f"Bearer {tenants[1].key}"}
        return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers).status_code == 200

    until(answers, scratch / "serve.log")
    return tenants


def tenant(url: str, admin: str, scratch: Path, number: int, adapters: int) -> Tenant:
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {admin}"}) as http:
        account = http.post("/v1/admin/accounts", json={"name": f"tenant-{number}", "tier": "shared"}).json()
        wanted = {"name": "bench", "scopes": ["inference", "manage"]}
        key = http.post(f"/v1/admin/accounts/{account['id']}/keys", json=wanted).json()["key"]
    client, models = Pillion(url, key), []
    for n in range(adapters):
        path = weights(scratch / f"a{number}-{n}.safetensors", number * 100 + n)
        models.append(client.adapters.upload(f"a{n}", "tiny", path).aliases[0])
    return Tenant(key, tuple(models))


async def measured(url: str, tenants: Sequence[Tenant], wanted: argparse.Namespace) -> dict[str, Any]:
    found = {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        place = Place(http, url, tenants)
        for name, floods in FLOODS.items():
            seen = await under(place, floods, wanted)
            found[name] = seen.table()
            say(f"{name}: {found[name]}")
    return found


async def under(place: Place, floods: Sequence[tuple[Flood, int]], wanted: argparse.Namespace) -> Seen:
    """The modest tenants' times while it is flooded."""
    seen, draw = Seen(), random.Random(wanted.seed)
    began = time.monotonic()
    over = began + wanted.warm_up + wanted.seconds

    async def flood(kind: Flood, first: int, step: int) -> None:
        number = first
        while time.monotonic() < over:
            await kind(place, seen, number)
            number += step

    async def one(tenant: Tenant) -> None:
        at = time.monotonic()
        status, cold = await place.call(tenant, tenant.models[0], 8)
        if at < began + wanted.warm_up:
            return
        if status == 200:
            seen.times.append(time.monotonic() - at)
            seen.cold += cold
        else:
            seen.failed[str(status)] += 1

    async with asyncio.TaskGroup() as under_way:
        for kind, count in floods:
            for first in range(count):
                under_way.create_task(flood(kind, first, count))
        while (now := time.monotonic()) < over:
            under_way.create_task(one(draw.choice(place.tenants[1:])))
            await asyncio.sleep(max(0.0, now + draw.expovariate(wanted.rate * MODEST) - time.monotonic()))
    return seen


def report(wanted: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    wanted.results.parent.mkdir(exist_ok=True)
    wanted.results.write_text(json.dumps(found, indent=2) + "\n")
    print("| flood |" + "".join(f" {kind}: p50 | p99 | of unloaded | failed |" for kind in found))
    for name in FLOODS:
        row = f"| {name} |"
        for kind in found:
            seen, alone = found[kind][name], found[kind]["none"]["p99_ms"]
            row += f" {seen['p50_ms']:.0f} ms | {seen['p99_ms']:.0f} ms | {seen['p99_ms'] / alone:.2f} |"
            row += f" {sum(seen['failed'].values())} of {seen['requests']} |"
        print(row)
    print(f"written to {wanted.results}")


if __name__ == "__main__":
    main()
