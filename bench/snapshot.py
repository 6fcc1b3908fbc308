"""Routing at size: 100,000 adapters of 10,000 accounts, and what changes among them.

    make bench-snapshot        prints a table, writes bench/results/snapshot.json

`pillion serve` runs with that much in its database (SQLite) and three gateways. Keys are made until every gateway takes
them, and revoked, which is answered when every gateway has acknowledged it. The snapshot that a gateway has kept is then
loaded in a process of its own. Last, requests for these adapters, by Zipf's law, are routed to a pool of 1,000 replicas;
for every 100 of them, which is 20 times a second at 2,000 requests per second, a replica has other adapters than before.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import sqlalchemy as sa
from msgspec.structs import replace

from engine import machine
from pillion.core import snapshot as wire
from pillion.core.routing import Routes
from pillion.gateway.balance import Balance
from pillion.gateway.kept import KeptSnapshot
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.outbox import Outbox
from pillion.gateway.plans import Plans
from pillion.gateway.pool import Pool
from pillion.store import tables
from pillion.store.database import Database
from placement import BASE, until

RESULTS = Path(__file__).resolve().parent / "results" / "snapshot.json"
WORKERS, CONNECTIONS, NOW = 3, 12, 1_790_000_000.0
REPLICAS, SLOTS, DELTA_S, RATE = 1000, 16, 0.05, 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load is not None:
        print(json.dumps(load(given.load)))
        return
    print("fills the database and starts …", file=sys.stderr)
    found: dict[str, Any] = {"machine": machine(), "adapters": given.adapters, "accounts": given.accounts}
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder:
        kept = Path(folder) / "kept"
        found["changes"] = changes(Path(folder), given.adapters, given.accounts, given.changes, kept)
        command = [sys.executable, __file__, "--load", str(kept)]
        found["load"] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        found["routing"] = routing(wire.decode(kept.read_bytes()), given.requests)
    print(table(found))
    given.results.write_text(json.dumps(found, indent=1) + "\n")


# Changes


def changes(root: Path, adapters: int, accounts: int, count: int, kept: Path) -> dict[str, Any]:
    """How long until all gateways know, in ms; leaves a gateway's snapshot at `kept`."""
    with serving(root):
        pass  # makes the database and the first key
    asyncio.run(fill(f"sqlite:///{root}/data/pillion.db", adapters, accounts))
    with serving(root) as url, httpx.Client(base_url=url, timeout=60) as control:
        control.headers["authorization"] = f"Bearer {(root / 'data' / 'admin-key').read_text().strip()}"
        lines = [httpx.Client(base_url=url, timeout=60) for _ in range(CONNECTIONS)]
        until(lambda: all_ready(root), root / "log")
        made = [measured(lambda: make(control, lines)) for _ in range(count)]
        revoked = [
            measured(lambda id=key["id"]: revoke(control, id))
            for key in control.get("/v1/keys", params={"limit": count}).json()["data"]
            if key["name"] == "bench"
        ]
        for line in lines:
            line.close()
    worker = root / "data" / "gateway" / "worker-0"
    read = KeptSnapshot(worker).read()
    assert read is not None
    kept.write_bytes(wire.encode(wire.decode(read[0])))
    return {"made": quantiles(made), "revoked": quantiles(revoked)}


def make(control: httpx.Client, lines: list[httpx.Client]) -> None:
    answer = control.post("/v1/keys", json={"name": "bench", "scopes": ["inference"]})
    headers = {"authorization": f"Bearer {answer.raise_for_status().json()['key']}"}
    for line in lines:
        while line.get("/v1/models", headers=headers).status_code != 200:
            time.sleep(0.001)


def revoke(control: httpx.Client, key: str) -> None:
    control.delete(f"/v1/keys/{key}").raise_for_status()


def measured(what: Any) -> float:
    began = time.perf_counter()
    what()
    return 1000 * (time.perf_counter() - began)


def all_ready(root: Path) -> bool:
    return all(
        (root / "data" / "gateway" / f"worker-{n}" / "snapshot.msgpack").exists() for n in range(WORKERS)
    )


@contextmanager
def serving(root: Path) -> Iterator[str]:
    model = root / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(BASE))
    config = root / "pillion.toml"
    config.write_text(
        f'[[models]]\nname = "tiny"\nsource = "path:{model}"\nengine = "sim"\n\n[[pools]]\nmodel = "tiny"\n'
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = ["serve", "--config", config, "--data-dir", root / "data", "--port", port, "--workers", WORKERS]
    with (root / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pillion", *map(str, command)], stdout=log, stderr=log, env={**os.environ}
        )
    try:
        until(lambda: answers(url), root / "log")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def answers(url: str) -> bool:
    try:
        return (
            httpx.get(f"{url}/readyz").status_code == 200
            and httpx.get(f"{url}/v1/catalog").status_code == 401
        )
    except httpx.HTTPError:
        return False


async def fill(url: str, adapters: int, accounts: int) -> None:
    """Adapters with a live version each, two keys for every account."""
    database = Database.open(url)
    owner = [f"acc_{number:05}" for number in range(accounts)]
    rows = range(1_000_000, 1_000_000 + adapters)
    of = dict(zip(rows, itertools.cycle(owner), strict=False))
    bytes_of = {
        "rank": 16,
        "alpha": 16.0,
        "target_modules": [],
        "size_bytes": 10**6,
        "warnings": [],
        "source": {},
    }
    tables_of: list[tuple[sa.Table, list[dict[str, Any]]]] = [
        (tables.accounts, [{"id": o, "name": o, "tier": "shared", "local_only": False} for o in owner]),
        (
            tables.adapters,
            [
                {"row_id": r, "id": f"adp_{r:020}", "account_id": of[r], "name": f"n{r}", "label": f"l{r}"}
                | {"base_model": "tiny", "state": "ready"}
                for r in rows
            ],
        ),
        (tables.adapter_labels, [{"adapter_row_id": r, "account_id": of[r], "label": f"l{r}"} for r in rows]),
        (
            tables.adapter_versions,
            [
                bytes_of
                | {
                    "account_id": of[r],
                    "adapter_row_id": r,
                    "version": 1,
                    "digest": f"{r:064x}",
                    "state": "ready",
                }
                for r in rows
            ],
        ),
        (
            tables.api_keys,
            [
                {"id": f"key_{o}_{n}", "account_id": o, "lookup": f"{o}{n}", "digest": "0" * 64, "name": "k"}
                | {"scopes": ["inference"]}
                for o in owner
                for n in range(2)
            ],
        ),
    ]
    async with database.transaction() as tx:
        connection = tx.everyone._session._connection
        for name, found in tables_of:
            columns = set(name.columns.keys())
            values = [{k: v for k, v in (row | {"created_at": NOW}).items() if k in columns} for row in found]
            await connection.execute(sa.insert(name), values)
        await connection.execute(sa.update(tables.adapters).values(live_version=1))
    await database.close()


# Loading


def load(path: Path) -> dict[str, Any]:
    """In a fresh process: as a gateway does, from the bytes to routes."""
    data, process = path.read_bytes(), psutil.Process()
    gc.collect()
    before, began = process.memory_info().rss, time.perf_counter()
    routes = Routes(wire.decode(data))
    seconds = time.perf_counter() - began
    gc.collect()
    return {
        "bytes": len(data),
        "seconds": round(seconds, 3),
        "mb": round((process.memory_info().rss - before) / 1e6, 1),
        "version": routes.version,
    }


# Routing


async def _pool() -> Pool:
    return Pool(3.0, Outbox())


def routing(snapshot: wire.Snapshot, requests: int) -> dict[str, Any]:
    """µs of a request's way to a replica, and of taking in a change, while both go on."""
    draw = random.Random(1)
    adapters = [a for a in snapshot.adapters if a.permit is not None]
    pool = next(i for i in snapshot.instances if i.account is None)
    names = [a.engine_name or "" for a in adapters]
    replicas = [
        wire.Replica(
            f"r{n}",
            "local",
            f"http://r{n}",
            "key",
            True,
            frozenset(draw.sample(names, SLOTS)),
            f"http://a{n}",
        )
        for n in range(REPLICAS)
    ]
    whole = replace(snapshot, instances=(replace(pool, replicas=tuple(replicas)),))
    knowledge = Knowledge(time.time, 60.0)
    knowledge.apply(Routes(whole), time.time())
    plans = Plans(knowledge, asyncio.run(_pool()), time.time, 60.0)
    balance = Balance(time.monotonic, draw.random)
    routed, applied, pause = [], [], itertools.cycle(range(int(RATE * DELTA_S)))
    gc.collect()
    for adapter in draw.choices(adapters, [1 / rank for rank in range(1, len(adapters) + 1)], k=requests):
        if next(pause) == 0:
            number = draw.randrange(REPLICAS)
            replicas[number] = replace(replicas[number], resident=frozenset(draw.sample(names, SLOTS)))
            applied.append(measured(lambda n=number: change(knowledge, pool.id, replicas[n])))
        routed.append(measured(lambda a=adapter: route(plans, balance, a)))
    return {
        "replicas": REPLICAS,
        "requests": requests,
        "request_us": {name: round(1000 * value, 1) for name, value in quantiles(routed).items()},
        "change_us": {name: round(1000 * value, 1) for name, value in quantiles(applied).items()},
    }


def change(knowledge: Knowledge, instance: int, replica: wire.Replica) -> None:
    version = knowledge.version
    delta = wire.Delta(version, version + 1, 0.0, {}, None, (), (), (), (), ((instance, replica),))
    knowledge.apply(knowledge.newest().patched(delta), time.time())


def route(plans: Plans, balance: Balance, adapter: wire.Adapter) -> None:
    found = balance.choose(plans.resolve(adapter.account, f"{adapter.labels[0]}:{adapter.row_id}", None))
    assert found is not None
    balance.begin(found.replica.id)
    balance.end(found.replica.id)


def quantiles(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50": round(cuts[49], 4), "p99": round(cuts[98], 4), "max": round(max(times), 4)}


def table(found: dict[str, Any]) -> str:
    made, revoked = found["changes"]["made"], found["changes"]["revoked"]
    request, change = found["routing"]["request_us"], found["routing"]["change_us"]
    return "\n".join(
        [
            "| | p50 | p99 |",
            "| --- | --- | --- |",
            f"| a key is made, until all {WORKERS} gateways take it | {made['p50']:.0f} ms | {made['p99']:.0f} ms |",
            f"| a key is revoked, until all have said so | {revoked['p50']:.0f} ms | {revoked['p99']:.0f} ms |",
            f"| a request is routed, {REPLICAS:,} replicas | {request['p50']:.0f} µs | {request['p99']:.0f} µs |",
            f"| a replica has others than before | {change['p50']:.0f} µs | {change['p99']:.0f} µs |",
            "",
            f"A gateway loads the snapshot ({found['load']['bytes'] / 1e6:.1f} MB) in {found['load']['seconds']:.2f} s; it "
            f"takes {found['load']['mb']:.0f} MB of memory.",
        ]
    )


if __name__ == "__main__":
    main()
