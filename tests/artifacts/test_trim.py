"""Copies on a node within bounds: the least recently used go, never those that are wanted or were just fetched."""

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from pillion.artifacts.fetch import fetch, locked
from pillion.artifacts.store import ArtifactStore
from pillion.artifacts.trim import RECENT_S, trim
from tests.replicas import Node

COUNT = 4
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def cache(node: Node) -> Path:
    return node.data_dir / "cache" / "adapters"


@pytest.fixture
async def digests(node: Node, cache: Path) -> list[str]:
    """Fetched one after the other, the first one hours ago."""
    found = [node.put(f"a{n}", n).digest for n in range(COUNT)]
    for n, digest in enumerate(found):
        await node.fetch(digest)
        at = time.time() - 3600 * (COUNT - n)
        os.utime(cache / f"{digest}.checked", (at, at))
    return found


def size(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("*/*"))


def there(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


async def test_what_was_used_least_recently_goes_with_all_that_belongs_to_it(
    cache: Path, digests: list[str]
) -> None:
    assert trim(cache, size(cache), (), time.time()) == []
    assert trim(cache, size(cache) - 1, (), time.time()) == digests[:1]
    assert trim(cache, size(cache) // 3, (), time.time()) == digests[1:3]
    left = sorted(path.name for path in cache.iterdir())
    assert left == [digests[3], f"{digests[3]}.checked", f"{digests[3]}.lock"]


async def test_what_is_used_again_is_young_again(node: Node, cache: Path, digests: list[str]) -> None:
    await node.fetch(digests[0])
    assert trim(cache, size(cache) - 1, (), time.time()) == digests[1:2]


async def test_what_is_wanted_or_was_just_fetched_stays(node: Node, cache: Path, digests: list[str]) -> None:
    await node.fetch(digests[2])
    assert trim(cache, 0, [digests[1]], time.time()) == [digests[0], digests[3]]
    assert trim(cache, 0, [digests[1]], time.time() + RECENT_S + 1) == [digests[2]]
    assert there(cache) == {digests[1]}


async def test_what_went_is_fetched_anew(node: Node, cache: Path, digests: list[str]) -> None:
    trim(cache, 0, (), time.time())
    assert (await node.fetch(digests[0]) / "adapter_config.json").exists()
    assert there(cache) == {digests[0]}


async def test_what_is_being_fetched_stays(cache: Path, digests: list[str]) -> None:
    with locked(cache / f"{digests[0]}.lock"):
        assert trim(cache, size(cache) - 1, (), time.time()) == digests[1:2]


async def test_halves_that_were_left_behind_go(cache: Path, digests: list[str]) -> None:
    for name in (".0123456789ab-xyz", f".gone-{digests[0]}"):
        (cache / name).mkdir()
        os.utime(cache / name, (1.0, 1.0))
    (cache / ".fresh").mkdir()
    assert trim(cache, size(cache), (), time.time()) == []
    assert {path.name for path in cache.glob(".*")} == {".fresh"}


def test_nothing_is_no_error(tmp_path: Path) -> None:
    assert trim(tmp_path / "none", 0, (), time.time()) == []


async def test_fetches_and_removals_at_once_give_whole_copies(node: Node, cache: Path) -> None:
    """What a fetch gives is there, whole, although others clear away all they may."""
    digests = [node.put(f"a{n}", n).digest for n in range(3)]
    ended = threading.Event()

    def clear() -> None:
        while not ended.is_set():
            trim(cache, 0, (), time.time() + RECENT_S - 0.2)  # but what was used 200 ms ago

    clearing = [asyncio.create_task(asyncio.to_thread(clear)) for _ in range(2)]
    store = ArtifactStore(node.url)
    try:
        for _ in range(30):
            began = time.time()
            paths = await asyncio.gather(*(fetch(node.url, d, cache) for d in digests * 2))
            whole = [(store.find(digest) / WEIGHTS).stat().st_size for digest in digests * 2]
            found = [(path / WEIGHTS).stat().st_size if (path / WEIGHTS).exists() else 0 for path in paths]
            assert found == whole or time.time() > began + 0.2
    finally:
        ended.set()
        await asyncio.gather(*clearing)
