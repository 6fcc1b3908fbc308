"""Machine code is taken only where it is of these very sources."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pillion.core import compiled


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("gateway/wire.py", "gateway/other.py", "core/limits.py", "core/adapters/names.py"):
        path = tmp_path / "pillion" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    monkeypatch.setattr(compiled, "SOURCES", tmp_path / "pillion")
    monkeypatch.setattr(compiled.sysconfig, "get_path", lambda name: str(tmp_path / name))
    monkeypatch.delenv("PILLION_COMPILED", raising=False)
    return tmp_path / "pillion"


@pytest.mark.parametrize("changed", ["gateway/wire.py", "gateway/other.py", "core/adapters/names.py"])
def test_code_of_other_sources_is_left_alone(
    sources: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiled.found() is None
    (compiled.place() / "pillion").mkdir(parents=True)
    assert compiled.found() == compiled.place() / "pillion"
    monkeypatch.setenv("PILLION_COMPILED", "0")
    assert compiled.found() is None
    monkeypatch.delenv("PILLION_COMPILED")
    (sources / changed).write_text("x = 2\n")
    assert compiled.found() is None


def test_all_that_is_compiled_is_there() -> None:
    assert all((compiled.SOURCES / f"{name}.py").is_file() for name in compiled.MODULES)


def test_what_does_not_run_here_is_told_and_left_alone(sources: Path) -> None:
    """Of another machine's libraries, say: a copied environment."""
    directory = compiled.place()
    (directory / "pillion").mkdir(parents=True)
    (directory / f"{compiled.GROUP}__mypyc{compiled.SUFFIX}").write_bytes(b"no library")
    before = sys.modules.get(f"{compiled.GROUP}__mypyc")
    try:
        with pytest.warns(UserWarning, match="runs as Python"):
            assert compiled.load() is None
        assert f"{compiled.GROUP}__mypyc" not in sys.modules
    finally:
        if before is not None:
            sys.modules[f"{compiled.GROUP}__mypyc"] = before
