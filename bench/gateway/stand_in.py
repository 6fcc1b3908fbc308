"""A stand-in for control: serves a gateway one large snapshot, and takes what it reports.

    python bench/gateway/stand_in.py --port 9102 --upstream http://127.0.0.1:9101 --targets FILE

Writes `FILE` with a line `key<TAB>model` for each adapter that requests take turns with: they are resident on the one
replica that is there. The others have accounts, keys, instances and residents too, but nobody asks for them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from pathlib import Path

import msgspec
import uvloop
from aiohttp import web

from pillion.control.shares import LimitShares
from pillion.core import keys, names, snapshot
from pillion.core.snapshot import Adapter, Instance, Key, Model, Replica, Snapshot
from pillion.core.usage import Demand, Mark, Report

TOKEN = "bench-internal-token"
BASE = "bench-base"
PEPPER = b"bench-pepper"
# Limits are on, and so high that nobody reaches them.
UNREACHED = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12}
PER_REPLICA = 100
PER_INSTANCE = 10


def world(upstream: str, accounts: int, adapters: int, used: int) -> tuple[Snapshot, list[tuple[str, str]]]:
    """The snapshot, and the (key, model) of those adapters that are asked for."""
    chance = random.Random(4)
    named = [f"acc_{number:06d}" for number in range(accounts)]
    minted = [keys.mint(chance.choice) for _ in named]
    held = {
        key.lookup: Key(f"key_{number}", account, keys.digest(PEPPER, key.text), ("inference",), **UNREACHED)
        for number, (account, key) in enumerate(zip(named, minted, strict=True))
    }
    tunes = [_adapter(number, named[(number - 1) % accounts], used) for number in range(1, adapters + 1)]
    asked = [
        (minted[(tune.row_id - 1) % accounts].text, f"{tune.labels[0]}:{tune.row_id}")
        for tune in tunes[:used]
    ]
    return (
        Snapshot(
            version=1,
            made_at=time.time(),
            pepper=PEPPER,
            keys=held,
            models=(Model(BASE, None, "chat", True),),
            adapters=tuple(tunes),
            instances=_instances(upstream, tunes, used),
        ),
        asked,
    )


def _adapter(number: int, account: str, used: int) -> Adapter:
    identity = f"adp_{number:020d}"
    return Adapter(
        id=identity,
        row_id=number,
        account=account,
        name=f"tune-{number}",
        labels=(f"ft{number}",),
        base=BASE,
        version=1,
        engine_name=names.engine_name(identity, f"{number:064x}"),
        instances=(1 if number <= used else 2 + (number - used - 1) // (PER_REPLICA * PER_INSTANCE),),
    )


def _instances(upstream: str, tunes: list[Adapter], used: int) -> tuple[Instance, ...]:
    """Pools: the first has the mock as its replica, the others ten replicas of a hundred adapters each."""
    made = [_instance(1, [_replica("r0", upstream, tunes[:used])])]
    rest = tunes[used:]
    for first in range(0, len(rest), PER_REPLICA * PER_INSTANCE):
        group = rest[first : first + PER_REPLICA * PER_INSTANCE]
        replicas = [
            _replica(f"r{first + at}", "http://127.0.0.1:9", group[at : at + PER_REPLICA])
            for at in range(0, len(group), PER_REPLICA)
        ]
        made.append(_instance(len(made) + 1, replicas))
    return tuple(made)


def _instance(number: int, replicas: list[Replica]) -> Instance:
    return Instance(number, None, BASE, f"served/{BASE}", True, None, tuple(replicas))


def _replica(name: str, url: str, held: list[Adapter]) -> Replica:
    resident = frozenset(adapter.engine_name for adapter in held if adapter.engine_name)
    return Replica(name, "local", url, f"infer-{name}", True, resident)


def app(data: bytes, version: int) -> web.Application:
    async def poll(request: web.Request) -> web.Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401)
        if int(request.query["after"]) < version:
            return web.Response(body=data, content_type="application/msgpack")
        await asyncio.sleep(float(request.query.get("wait", "0")))
        return web.Response(status=204)

    marks: dict[str, int] = {}
    shares = LimitShares(time.time)

    async def usage(request: web.Request) -> web.Response:
        report = msgspec.msgpack.decode(await request.read(), type=Report)
        mark = max([marks.get(report.spool, 0), *(told.seq for told in report.told)])
        marks[report.spool] = mark
        return web.Response(body=msgspec.msgpack.encode(Mark(mark)), content_type="application/msgpack")

    async def limits(request: web.Request) -> web.Response:
        demand = msgspec.msgpack.decode(await request.read(), type=Demand)
        return web.Response(
            body=msgspec.msgpack.encode(shares.told(demand)), content_type="application/msgpack"
        )

    async def taken(_: web.Request) -> web.Response:
        return web.json_response(marks)

    made = web.Application(client_max_size=2**28)
    made.router.add_get("/internal/v1/snapshot", poll)
    made.router.add_post("/internal/v1/usage", usage)
    made.router.add_post("/internal/v1/limits", limits)
    made.router.add_get("/bench/taken", taken)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--targets", type=Path, required=True)
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--used", type=int, default=1_000, help="adapters that are asked for")
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    made, asked = world(options.upstream, options.accounts, options.adapters, options.used)
    partial = options.targets.with_suffix(".partial")
    partial.write_text("".join(f"{key}\t{model}\n" for key, model in asked))
    partial.replace(options.targets)
    served = app(snapshot.encode(made), made.version)
    uvloop.install()
    web.run_app(served, host="127.0.0.1", port=options.port, print=lambda *_: None, access_log=None)


if __name__ == "__main__":
    main()
