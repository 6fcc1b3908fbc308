"""Where a base model comes from, and its config.json, which verification needs."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pillion.artifacts.files import write_synced
from pillion.artifacts.hub import Hub
from pillion.core.adapters.bases import Base, base_modules
from pillion.core.adapters.strict_json import parse_object
from pillion.core.errors import AdapterInvalidError, InvalidRequestError

MAX_CONFIG = 2**20
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}", re.ASCII)


@dataclass(frozen=True)
class PathSource:
    directory: Path


@dataclass(frozen=True)
class HubSource:
    repo: str
    revision: str | None = None


def parse_source(source: str) -> PathSource | HubSource:
    """`path:/a/directory` or `hf:<repo>[@revision]`. Raises `InvalidRequestError`."""
    kind, _, rest = source.partition(":")
    if kind == "path" and rest.startswith("/"):
        return PathSource(Path(rest))
    repo, at, revision = rest.partition("@")
    sane = _REPO.fullmatch(repo) and (not at or _REVISION.fullmatch(revision)) and ".." not in rest
    if kind == "hf" and sane:
        return HubSource(repo, revision or None)
    raise InvalidRequestError(
        f"source {source[:200]!r} must be path:</absolute/directory> or hf:<repo>[@<revision>].",
        param="source",
    )


def check_model_directory(directory: Path) -> Path:
    """The directory, links resolved, if it holds a model. Raises `InvalidRequestError`."""
    resolved = directory.resolve()
    if not (resolved / "config.json").is_file():
        raise InvalidRequestError(
            f"{str(directory)[:200]} is not a model's directory: no config.json.", param="source"
        )
    return resolved


def check_under_root(path: str, root: Path) -> Path:
    """The model directory `path` if it lies under `root`, both with links resolved. A relative one is under
    `root`.

    What lies outside and what does not exist get the same answer: nothing is told of what is outside.
    """
    refused = InvalidRequestError(
        f"path {path[:200]!r} is not a model's directory (with a config.json) under your account's root.",
        param="source",
    )
    if "\0" in path:
        raise refused
    try:
        resolved = (root / path).resolve(strict=True)
        config = (resolved / "config.json").resolve(strict=True)
        top = root.resolve(strict=True)
        inside = all(path.resolve().is_relative_to(top) for path in _links(resolved))
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise refused from error
    if not (inside and resolved.is_relative_to(top) and config.is_relative_to(top) and config.is_file()):
        raise refused
    return resolved


def _links(directory: Path) -> Iterator[Path]:
    """Every link in it, at any depth: an engine would follow them. Links to directories are not entered."""
    for folder, folders, files in os.walk(directory):
        yield from (path for name in (*folders, *files) if (path := Path(folder, name)).is_symlink())


async def base_config(source: str, cache_dir: Path, hub: Hub | None = None) -> dict[str, Any]:
    """The config.json of the base at `source`.

    Of a Hugging Face repository only this file is fetched, once, and kept in `cache_dir`: an engine fetches
    the model itself. Raises `InvalidRequestError` where there is none that can be read, `UnavailableError`
    where the hub is away.
    """
    parsed = parse_source(source)
    if isinstance(parsed, PathSource):
        data = await asyncio.to_thread(_read, check_model_directory(parsed.directory) / "config.json")
    else:
        data = await _hub_config(parsed, cache_dir, hub or Hub())
    try:
        return parse_object(data, f"config.json of {source}", MAX_CONFIG)
    except AdapterInvalidError as error:
        raise InvalidRequestError("; ".join(error.reasons), param="source") from error


async def base(
    name: str, source: str, cache_dir: Path, hub: Hub | None = None, others: frozenset[str] = frozenset()
) -> Base:
    """The base model `name` at `source` as adapters are verified against it.

    `others`: names and repositories of other models, for which an adapter may be meant (`Base.others`).
    """
    parsed = parse_source(source)
    config = await base_config(source, cache_dir, hub)
    repo = parsed.repo if isinstance(parsed, HubSource) else parsed.directory.name
    return Base(name, base_modules(config), repo, others)


async def _hub_config(source: HubSource, cache_dir: Path, hub: Hub) -> bytes:
    label = f"{source.repo}@{source.revision or 'main'}".replace("/", "--")
    kept = cache_dir / f"{label}.json"
    if kept.is_file():
        return await asyncio.to_thread(_read, kept)
    found = await hub.resolve(source.repo, source.revision)
    data = await hub.small_file(found, "config.json", MAX_CONFIG)
    await asyncio.to_thread(_keep, kept, data)
    return data


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_CONFIG + 1)


def _keep(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as own:  # others may fetch it as well
        fresh = Path(own, path.name)
        write_synced(fresh, data)
        fresh.replace(path)
