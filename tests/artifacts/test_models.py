"""Where bases come from, and paths that try to leave their root."""

import json
from pathlib import Path

import pytest

from pillion.artifacts import models
from pillion.artifacts.files import write_synced
from pillion.artifacts.models import HubSource, PathSource, base, base_config, check_under_root, parse_source
from pillion.core.errors import AdapterInvalidError, InvalidRequestError
from tests.adapter_files import LLAMA


def model(directory: Path, config: object = LLAMA) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_sources() -> None:
    assert parse_source("path:/models/x") == PathSource(Path("/models/x"))
    assert parse_source("hf:Qwen/Qwen3-0.6B") == HubSource("Qwen/Qwen3-0.6B")
    assert parse_source("hf:gpt2@refs/pr/1") == HubSource("gpt2", "refs/pr/1")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "x",
        "path:relative",
        "hf:",
        "hf:a/b/c",
        "hf:../x",
        "hf:a/..",
        "hf:a/b@",
        "hf:a/b@../../x",
        "hf:a b",
        "s3:x",
    ],
)
def test_what_is_no_source(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="hf:<repo>"):
        parse_source(source)


async def test_a_directory_s_config(tmp_path: Path) -> None:
    source = f"path:{model(tmp_path / 'm')}"
    assert await base_config(source, tmp_path) == LLAMA
    found = await base("tiny", source, tmp_path, others=frozenset({"x"}))
    assert (found.name, found.repo, found.others) == ("tiny", "m", {"x"})


async def test_a_base_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"no config\.json"):
        await base_config(f"path:{tmp_path}", tmp_path)
    bad = model(tmp_path / "bad")
    (bad / "config.json").write_text("{")
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        await base_config(f"path:{bad}", tmp_path)
    with pytest.raises(AdapterInvalidError, match="mamba"):
        await base("x", f"path:{model(tmp_path / 'm', {'model_type': 'mamba'})}", tmp_path)


def test_a_path_under_its_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    inside = model(root / "a" / "b")
    assert check_under_root(str(inside), root) == inside
    assert check_under_root("a/b", root) == inside
    assert check_under_root("a/../a/b", root) == inside
    (root / "link").symlink_to(inside)
    assert check_under_root("link", root) == inside
    (root / "blob").write_bytes(b"x")
    (inside / "model.safetensors").symlink_to(root / "blob")  # as the hub's cache has them
    assert check_under_root("a/b", root) == inside


def test_paths_that_leave_their_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    outside = model(tmp_path / "outside")
    model(tmp_path / "root-2")
    (root / "link").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    (root / "half").mkdir()
    (root / "half" / "config.json").symlink_to(outside / "config.json")
    for name, target in (("file", "config.json"), ("folder", "."), ("deep", "config.json"), ("none", "none")):
        (model(root / f"links-{name}") / "x").mkdir()
        (root / f"links-{name}" / ("x/y" if name == "deep" else "y")).symlink_to(outside / target)
    for path in (
        "../outside",
        str(outside),
        "link",
        "loop",
        "half",
        "links-file",
        "links-folder",
        "links-deep",
        "links-none",
        "missing",
        "../root-2",
        ".",
        "a\0b",
        "x" * 5000,
    ):
        with pytest.raises(InvalidRequestError, match="under your account's root"):
            check_under_root(path, root)


def test_a_config_that_two_fetch_at_once_is_kept_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, write = tmp_path / "a--b@main.json", write_synced

    def written(path: Path, data: bytes) -> None:
        write(path, data)
        if data == b"one":
            models._keep(kept, b"two")

    monkeypatch.setattr(models, "write_synced", written)
    models._keep(kept, b"one")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(kept.name, b"one")]
