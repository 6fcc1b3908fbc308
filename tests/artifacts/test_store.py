"""What is put into the store while it is cleared of what nobody needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pillion.artifacts.store import CONFIG, WEIGHTS, ArtifactStore

DIGEST = "a" * 64


def put(store: ArtifactStore) -> Path:
    directory = store.open_incoming()
    for name in (WEIGHTS, CONFIG):
        (directory / name).write_bytes(b"the same bytes")
    return store.place(directory, DIGEST)


@pytest.mark.parametrize("before", ["it is moved", "it is looked at"])
async def test_bytes_that_come_again_this_very_moment_stay(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    os.utime(put(store), (1.0, 1.0))
    look = store._is_untouched

    def looked_at(digest: str, since: float) -> bool:
        if before == "it is looked at":
            put(store)
        found = look(digest, since)
        if before == "it is moved":
            put(store)
        return found

    monkeypatch.setattr(store, "_is_untouched", looked_at)
    assert await store.discard(DIGEST, 1000.0) is False
    assert {path.name for path in store.find(DIGEST).iterdir()} == {WEIGHTS, CONFIG}
    assert not list((store.root / "incoming").iterdir())


async def test_what_is_old_goes(store: ArtifactStore) -> None:
    os.utime(put(store), (1.0, 1.0))
    assert await store.discard(DIGEST, 1000.0) is True
    assert not store.path(DIGEST).exists()
    assert await store.discard(DIGEST, 1000.0) is False
