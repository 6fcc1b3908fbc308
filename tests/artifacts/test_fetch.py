"""Adapters on a node: copied, checked by digest, healed when damaged, shared by all who ask."""

import asyncio
import os
from pathlib import Path

import pytest

from pillion.artifacts import fetch as fetching
from pillion.artifacts.fetch import fetch
from pillion.artifacts.receive import receive
from pillion.artifacts.store import ArtifactStore
from pillion.core.adapters.bases import Base
from pillion.core.adapters.verify import Limits
from pillion.core.errors import ArtifactCorruptError, ArtifactMissingError
from tests.adapter_files import weights

FILE = "adapter_model.safetensors"


@pytest.fixture
async def digest(store: ArtifactStore, tiny: Base) -> str:
    async with store.intake(10**9) as intake:
        await intake.write(weights())
        return (await receive(intake, None, tiny, Limits())).digest


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "node" / "cache"


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each copy that is made, by digest."""
    made: list[str] = []
    copy = fetching._copy

    def counted(source: Path, target: Path, digest: str) -> None:
        made.append(digest)
        copy(source, target, digest)

    monkeypatch.setattr(fetching, "_copy", counted)
    return made


async def test_a_version_comes_to_the_node_once(
    store: ArtifactStore, digest: str, cache: Path, copies: list[str]
) -> None:
    found = await fetch(store.url, digest, cache)
    assert found == cache / digest
    assert (found / FILE).read_bytes() == weights()
    assert sorted(path.name for path in found.iterdir()) == ["adapter_config.json", FILE]
    assert await fetch(store.url, digest, cache) == found
    assert copies == [digest]


async def test_concurrent_fetches_share_one_copy(
    store: ArtifactStore, digest: str, cache: Path, copies: list[str]
) -> None:
    await asyncio.gather(*(fetch(store.url, digest, cache) for _ in range(10)))
    assert copies == [digest]


async def test_a_damaged_copy_is_fetched_anew_and_never_reaches_the_store(
    store: ArtifactStore, digest: str, cache: Path
) -> None:
    kept = await fetch(store.url, digest, cache) / FILE
    kept.chmod(0o644)
    with kept.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    assert (store.find(digest) / FILE).read_bytes() == weights()
    await fetch(store.url, digest, cache)
    assert kept.read_bytes() == weights()
    kept.unlink()
    await fetch(store.url, digest, cache)
    assert kept.read_bytes() == weights()


async def test_a_copy_that_is_good_needs_no_store(store: ArtifactStore, digest: str, cache: Path) -> None:
    found = await fetch(store.url, digest, cache)
    await store.delete(digest)
    os.utime(found / FILE)
    assert await fetch(store.url, digest, cache) == found


async def test_a_damaged_store_is_told_and_leaves_nothing_on_the_node(
    store: ArtifactStore, digest: str, cache: Path
) -> None:
    (store.find(digest) / FILE).write_bytes(weights(seed=1))
    with pytest.raises(ArtifactCorruptError, match=digest):
        await fetch(store.url, digest, cache)
    assert [path.name for path in cache.iterdir()] == [f"{digest}.lock"]


async def test_what_the_store_lacks(store: ArtifactStore, digest: str, cache: Path) -> None:
    with pytest.raises(ArtifactMissingError, match="0000"):
        await fetch(store.url, "0" * 64, cache)
    with pytest.raises(ValueError, match="not a digest"):
        await fetch(store.url, "../" + digest, cache)
    assert not (cache / digest).exists()
