"""Metrics of several workers on one page."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pillion.gateway.siblings import STALE_S, Siblings, merged


def page(count: int, *, extra: bool = False) -> bytes:
    registry = CollectorRegistry()
    Counter("asked", 'With { and " in its help', ("kind",), registry=registry).labels('a "b" {c} d').inc(
        count
    )
    Gauge("age", "Without labels", registry=registry).set(count / 2)
    Histogram("took", "Buckets", registry=registry, buckets=(1, 2)).observe(count)
    if extra:
        Gauge("extra", "Of one alone", registry=registry).set(1)
    return generate_latest(registry)


def test_a_page_of_all_is_as_prometheus_reads_it() -> None:
    text = merged({"worker-0": page(1), "worker-1": page(3, extra=True)}).decode()
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    samples = {
        (sample.name, sample.labels["worker"], sample.labels.get("kind")): sample.value
        for family in families
        for sample in family.samples
    }
    kind = 'a "b" {c} d'
    assert samples["asked_total", "worker-0", kind] == 1
    assert samples["asked_total", "worker-1", kind] == 3
    assert samples["age", "worker-0", None] == 0.5
    assert samples["age", "worker-1", None] == 1.5
    assert samples["took_count", "worker-1", None] == 1
    assert ("extra", "worker-0", None) not in samples
    types = {family.name: family.type for family in families}
    assert (types["asked"], types["age"], types["took"]) == ("counter", "gauge", "histogram")


def test_its_own_numbers_are_of_now_and_those_of_the_gone_are_left_out(tmp_path: Path) -> None:
    now = 1_000.0
    first, second = (Siblings(tmp_path, f"worker-{n}", lambda: now) for n in range(2))
    first.write(b"# HELP n N\nn 1\n")
    second.write(b"# HELP n N\nn 2\n")
    for path in tmp_path.iterdir():
        os.utime(path, (now, now))
    told = first.page(b"# HELP n N\nn 10\n")
    assert told == b'# HELP n N\nn{worker="worker-0"} 10\nn{worker="worker-1"} 2\n'
    os.utime(tmp_path / "worker-1.prom", (now - STALE_S - 1, now - STALE_S - 1))
    assert first.page(b"# HELP n N\nn 10\n") == b'# HELP n N\nn{worker="worker-0"} 10\n'


async def test_what_is_written_goes_with_its_worker(tmp_path: Path) -> None:
    siblings, wrote = Siblings(tmp_path, "worker-0", lambda: 0.0), asyncio.Event()

    def text() -> bytes:
        asyncio.get_running_loop().call_soon(wrote.set)
        return b"# HELP n N\nn 1\n"

    task = asyncio.create_task(siblings.run(text))
    await wrote.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["worker-0.prom"]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert list(tmp_path.iterdir()) == []
