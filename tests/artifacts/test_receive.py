"""An adapter's way into the store: streamed, verified, committed whole or not at all."""

import asyncio
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from pillion.artifacts.receive import Stored, effective, receive
from pillion.artifacts.store import ArtifactStore, root_of
from pillion.core.adapters.bases import Base
from pillion.core.adapters.header import parse_file
from pillion.core.adapters.pairs import pair
from pillion.core.adapters.verify import Limits
from pillion.core.errors import AdapterInvalidError, AdapterTooLargeError, ArtifactMissingError
from tests.adapter_files import arrays, config_bytes, weights
from tests.artifacts.conftest import everything

LIMITS = Limits()


async def put(
    store: ArtifactStore,
    base: Base,
    data: bytes,
    config: bytes | None = None,
    limits: Limits = LIMITS,
    step: int = 777,
) -> Stored:
    async with store.intake(limits.max_bytes) as intake:
        for start in range(0, len(data), step):
            await intake.write(data[start : start + step])
        return await receive(intake, config, base, limits)


async def test_weights_and_config_become_a_version(store: ArtifactStore, tiny: Base) -> None:
    data = weights()
    stored = await put(store, tiny, data, config_bytes())
    folder = store.find(stored.digest)
    assert folder == store.root / "adapters" / stored.digest[:2] / stored.digest
    assert (folder / "adapter_model.safetensors").read_bytes() == data
    assert json.loads((folder / "adapter_config.json").read_bytes())["lora_alpha"] == 8
    assert stored.size_bytes == len(data)
    assert len(everything(store)) == 2, "nothing else is left"


async def test_the_same_bytes_are_the_same_version_and_other_config_another(
    store: ArtifactStore, tiny: Base
) -> None:
    one = await put(store, tiny, weights(), config_bytes())
    again = await put(store, tiny, weights(), config_bytes(lora_alpha=8.0, lora_dropout=0.1))
    other = await put(store, tiny, weights(), config_bytes(lora_alpha=9))
    assert one.digest == again.digest != other.digest
    assert len(everything(store)) == 4


async def test_the_same_upload_heals_a_damaged_version(store: ArtifactStore, tiny: Base) -> None:
    stored = await put(store, tiny, weights())
    kept = store.find(stored.digest) / "adapter_model.safetensors"
    kept.write_bytes(b"damaged")
    await put(store, tiny, weights())
    assert kept.read_bytes() == weights()


async def test_many_uploads_of_one_adapter_at_once(store: ArtifactStore, tiny: Base) -> None:
    found = await asyncio.gather(*(put(store, tiny, weights()) for _ in range(8)))
    assert len({stored.digest for stored in found}) == 1
    assert len(everything(store)) == 2


@pytest.mark.parametrize("limit", [10, 999_999, 1_000_000])
async def test_too_large_is_refused_while_it_comes(store: ArtifactStore, tiny: Base, limit: int) -> None:
    with pytest.raises(AdapterTooLargeError, match="MB"):
        await put(store, tiny, b"\0" * 3_000_000, limits=Limits(max_bytes=limit))
    assert everything(store) == []


async def test_the_byte_that_is_too_many_is_refused_when_it_comes(store: ArtifactStore) -> None:
    async with store.intake(10) as intake:
        await intake.write(b"\0" * 10)
        with pytest.raises(AdapterTooLargeError):
            await intake.write(b"\0")


async def test_what_is_refused_leaves_nothing(store: ArtifactStore, tiny: Base) -> None:
    for data in (b"", b"\x80\x04junk", weights(rank=65), weights()[:-1]):
        with pytest.raises(AdapterInvalidError):
            await put(store, tiny, data)
    with pytest.raises(AdapterInvalidError) as caught:
        await put(store, tiny, b"PICKLE", b"[")
    assert len(caught.value.reasons) == 2, "of the weights and of the config"
    assert everything(store) == []


async def test_a_client_that_leaves_leaves_nothing(store: ArtifactStore, tiny: Base) -> None:
    writing = asyncio.Event()

    async def upload() -> None:
        async with store.intake(10**9) as intake:
            await intake.write(b"x" * 2_000_000)
            writing.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(upload())
    await writing.wait()
    assert len(everything(store)) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert everything(store) == []


async def test_a_cancel_in_the_middle_of_file_work_waits_for_the_thread(store: ArtifactStore) -> None:
    started, finish = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def work() -> None:
        async with store.intake(10**9) as intake:

            def slow() -> None:
                loop.call_soon_threadsafe(started.set)
                asyncio.run_coroutine_threadsafe(finish.wait(), loop).result(10)
                (intake.directory / "late").write_bytes(b"x")

            await intake.run(slow)

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    loop.call_soon(finish.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert everything(store) == []


async def test_a_crash_leaves_what_sweep_removes_and_nothing_visible(
    store: ArtifactStore, tiny: Base
) -> None:
    kept = await put(store, tiny, weights())
    crashed = store.intake(10**9)
    await crashed.__aenter__()
    await crashed.write(b"x" * 2_000_000)
    written = max(path.stat().st_mtime for path in crashed.directory.rglob("*"))
    assert await store.sweep(older_than=written) == 0, "one that still writes is let be"
    assert await store.sweep(older_than=written + 1) == 1
    assert len(everything(store)) == 2
    assert store.find(kept.digest)


async def test_delete(store: ArtifactStore, tiny: Base) -> None:
    stored = await put(store, tiny, weights())
    await store.delete(stored.digest)
    await store.delete(stored.digest)
    with pytest.raises(ArtifactMissingError, match=stored.digest):
        store.find(stored.digest)
    assert everything(store) == []


@pytest.mark.parametrize("digest", ["", "..", "../" * 20 + "etc", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_digests_become_paths(store: ArtifactStore, digest: str) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        store.path(digest)


@pytest.mark.parametrize("url", ["s3://bucket/x", "/plain", "file://host/dir", "file:relative", "http://x/y"])
def test_only_file_urls_are_stores(url: str) -> None:
    with pytest.raises(ValueError, match="file:///"):
        root_of(url)


def test_a_url_s_escapes_are_read() -> None:
    assert root_of("file:///a%20b/c") == Path("/a b/c")


async def test_memory_stays_bounded(store: ArtifactStore) -> None:
    block = b"\1" * 65536
    async with store.intake(10**9) as intake:
        tracemalloc.start()
        for _ in range(640):  # 40 MiB
            await intake.write(block)
        await intake.finish()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 * 2**20


def spoil(change: str, dtype: str = "float32") -> dict[str, np.ndarray]:
    made = arrays(dtype=dtype)
    side = ".lora_B." if change.endswith("B") else ".lora_A."
    for name in made:
        if side in name:
            made[name] = np.zeros_like(made[name]) * (-1 if change.startswith("minus") else 1)
    return made


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("change", ["zero B", "zero A", "minus zero B"])
async def test_an_adapter_that_changes_nothing_is_refused(
    store: ArtifactStore, tiny: Base, change: str, dtype: str
) -> None:
    with pytest.raises(AdapterInvalidError, match="all zero"):
        await put(store, tiny, save(spoil(change, dtype)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_value_in_one_pair_is_enough(tmp_path: Path, dtype: str) -> None:
    made = spoil("zero B", dtype)
    name = [name for name in made if ".lora_B." in name][-1]
    made[name].flat[-1] = np.finfo(dtype).tiny
    path = tmp_path / "one"
    path.write_bytes(save(made))
    assert effective(path, pair(parse_file(save(made)).tensors.values()).pairs)


def test_a_and_b_of_different_modules_do_not_count(tmp_path: Path) -> None:
    made = arrays()
    for name in made:
        if ("layers.0" in name) == (".lora_A." in name):
            made[name] = np.zeros_like(made[name])
    path = tmp_path / "none"
    path.write_bytes(save(made))
    assert not effective(path, pair(parse_file(path.read_bytes()).tensors.values()).pairs)
    assert load(path.read_bytes())
