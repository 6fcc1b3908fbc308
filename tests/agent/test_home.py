"""A replica's directory: what is written there is whole, and nothing else is left."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pillion.agent.home import EngineRecord, Home


def test_a_disk_that_is_full_is_not_filled_with_what_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an agent keeps is tried again and again."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    home, first = Home(tmp_path), EngineRecord(1, "a", 1, 1)
    home.write("engine.json", first)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                home.write("engine.json", EngineRecord(2, "b", 2, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["engine.json"]
    assert home.read("engine.json", EngineRecord) == first
