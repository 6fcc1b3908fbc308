"""Usage: taking events in, and asking what was used, with a million events there, on SQLite and on PostgreSQL.

    make bench-usage           prints a table, writes bench/results/usage.json

Events come in reports of 500, as gateways send them, through the code that control takes them with: each one once, hourly
sums and, with billing, prices and what is owed in the same transaction. The events that are there already are put in by
the database's own means. Then the account with the most usage asks, over an hourly-summed month.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from engine import machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.postgres import Server, _cluster  # noqa: E402

from pillion.control import usage, usage_queries  # noqa: E402
from pillion.control.keys import Principal  # noqa: E402
from pillion.core.usage import Report, Used  # noqa: E402
from pillion.store.database import Database  # noqa: E402

NOW = 1_790_000_000.0
DAYS, ACCOUNTS, ADAPTERS, BATCH, POOL = 30, 20, 50, 500, 1
# As an installation would run it, on this machine's disk: every commit is on it.
POSTGRES = ("listen_addresses=", "shared_buffers=256MB", "max_wal_size=4GB")
COPY = """INSERT INTO usage_events (account_id, spool, seq, at, key_id, adapter_id, adapter_version, model, base_model,
    instance_id, replica, region, request_id, prompt_tokens, cached_tokens, completion_tokens, status, ttft_ms,
    duration_ms, cold) VALUES (:a, 'old', :n, :t, :k, :d, 1, 'm', 'tiny', 1, 'r', 'local', 'q', :p, 0, :c, '200', 5.0, 9.0,
    false)"""
SUMS = """INSERT INTO usage_hours (account_id, hour, key_id, base_model, adapter_id, adapter_version, instance_id, outcome,
    requests, prompt_tokens, cached_tokens, completion_tokens) SELECT account_id, hour, key_id, base_model, adapter_id,
    adapter_version, instance_id, 'ok', count(*), sum(prompt_tokens), 0, sum(completion_tokens) FROM (SELECT *,
    CAST(at AS BIGINT) / 3600 AS hour FROM usage_events) AS e GROUP BY 1, 2, 3, 4, 5, 6, 7"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--reports", type=int, default=100, help="of 500 events, timed")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "usage.json")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "events": arguments.events}
    for name, open_url in (("sqlite", sqlite), ("postgresql", postgresql)):
        with open_url() as url:
            found[name] = asyncio.run(measure(url, arguments.events, arguments.reports))
        print(name, json.dumps(found[name]))
    if arguments.events >= 1_000_000:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


@contextmanager
def sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder:
        yield f"sqlite:///{folder}/usage.db"


@contextmanager
def postgresql() -> Iterator[str]:
    with _cluster(POSTGRES) as (cluster, _server):
        assert isinstance(_server, Server)
        yield cluster.url(cluster.create())


async def measure(url: str, events: int, reports: int) -> dict[str, Any]:
    db = Database.open(url)
    await db.migrate()
    await prepare(db, events)
    control: Any = SimpleNamespace(db=db, clock=lambda: NOW, settings=SimpleNamespace(billing=False))
    who = Principal("acc_0", "key", frozenset())
    found: dict[str, Any] = {}
    for billing in (False, True):
        control.settings.billing = billing
        rate = await take(control, f"new-{billing}", reports)
        found["events_per_s_with_billing" if billing else "events_per_s"] = round(rate)
    asks: dict[str, Callable[[], Awaitable[Any]]] = {
        "summary_24h_by_model": lambda: usage_queries.summary(control, who, "24h", "model"),
        "summary_7d_by_adapter": lambda: usage_queries.summary(control, who, "7d", "adapter"),
        "summary_30d_by_day": lambda: usage_queries.summary(control, who, "30d", "day"),
        "billing_snapshot": lambda: usage_queries.snapshot(control, who),
        "events_page_of_100": lambda: usage_queries.events(control, who, str(events // 2), 100),
    }
    for name, ask in asks.items():
        found[f"{name}_ms"] = await timed(ask)
    async with db.read() as tx:
        (total,) = await tx.usage.sums(who.account, since=NOW - DAYS * 86_400, until=NOW)
        count = sa.text("SELECT count(*) FROM usage_hours WHERE account_id = :account_id")
        rows = await tx.intake._session.run(count.bindparams(account_id=who.account))
        found["requests_of_account"], found["hourly_rows_of_account"] = total.requests, rows.scalar()
    await db.close()
    return found


async def prepare(db: Database, events: int) -> None:
    """A shared pool with a price, and `events` over a month: few accounts and adapters have most of them."""
    draw = random.Random(1)
    async with db.transaction() as tx:
        await tx.instances.create(None, model="tiny", spec={}, now=0.0)
        await tx.prices.add(
            "tokens", "tiny", input=10**5, output=4 * 10**5, effective_ms=0, source="b", now=0.0
        )
    accounts = [1 / (n + 1) for n in range(ACCOUNTS)]
    adapters = [1 / (n + 1) for n in range(ADAPTERS)]
    for start in range(0, events, 50_000):
        size = min(50_000, events - start)
        chosen = zip(
            draw.choices(range(ACCOUNTS), accounts, k=size),
            draw.choices(range(ADAPTERS), adapters, k=size),
            strict=True,
        )
        rows = [
            {
                "a": f"acc_{account}", "n": start + n, "t": NOW - draw.random() * DAYS * 86_400, "k": f"key_{adapter % 5}",
                "d": f"adp_{account}_{adapter}", "p": draw.randrange(2000), "c": draw.randrange(500),
            }
            for n, (account, adapter) in enumerate(chosen)
        ]  # fmt: skip
        async with db._write.begin() as connection:
            await connection.execute(sa.text(COPY), rows)
    async with db._write.begin() as connection:
        await connection.execute(sa.text(SUMS))
        if connection.dialect.name == "postgresql":
            await connection.execute(sa.text("ANALYZE"))


async def take(control: Any, spool: str, reports: int) -> float:
    """Events a second."""
    draw = random.Random(2)
    made = []
    for number in range(reports):
        told = tuple(used(number * BATCH + n + 1, draw) for n in range(BATCH))
        made.append(Report(spool, 1, told))
    began = time.perf_counter()
    for report in made:
        await usage.take(control, report)
    return reports * BATCH / (time.perf_counter() - began)


def used(seq: int, draw: random.Random) -> Used:
    account, adapter = draw.randrange(ACCOUNTS), draw.randrange(ADAPTERS)
    return Used(
        seq, NOW - draw.random() * 60, f"acc_{account}", f"key_{adapter % 5}", f"adp_{account}_{adapter}", 1, "m",
        "tiny", POOL, "r", "local", f"req_{seq}", draw.randrange(2000), 0, draw.randrange(500), "200", 5.0, 9.0, False,
    )  # fmt: skip


async def timed(ask: Callable[[], Awaitable[Any]]) -> float:
    """The median of 15, after one that does not count."""
    found = []
    for _ in range(16):
        began = time.perf_counter()
        await ask()
        found.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(found[1:]), 2)


if __name__ == "__main__":
    main()
