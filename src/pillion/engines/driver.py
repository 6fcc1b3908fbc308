"""What it takes to start one kind of engine, and to read from its log how far it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from pillion.core.errors import InvalidRequestError
from pillion.core.replica import ReplicaSpec, Stage

PLUGIN = Path(__file__).parent / "plugin"

Options = TypeVar("Options", bound=msgspec.Struct)


@dataclass(frozen=True)
class Launch:
    """A process to start. Keys are in `env` alone: arguments are open to every user of the machine."""

    argv: tuple[str, ...]
    env: dict[str, str]


class EngineDriver(Protocol):
    """One kind of engine."""

    def command(self, spec: ReplicaSpec, port: int, python: Path, data_dir: Path) -> Launch:
        """How to start it on `port` of loopback with the interpreter `python`.

        Raises `InvalidRequestError` where `engine_options` has a setting that is unknown or out of range.
        """
        ...

    def stage(self, line: str) -> Stage | None:
        """The stage of starting that a line of the engine's log announces."""
        ...


def driver(engine: str) -> EngineDriver:
    """The driver of an engine by name. Raises `InvalidRequestError`."""
    from pillion.engines.sim.driver import SimDriver
    from pillion.engines.vllm import VllmDriver

    known: dict[str, type[EngineDriver]] = {"sim": SimDriver, "vllm": VllmDriver}
    if engine not in known:
        raise InvalidRequestError(
            f"engine {engine!r} is unknown; there are: {', '.join(known)}.", param="engine"
        )
    return known[engine]()


def environment(spec: ReplicaSpec, inherited: Mapping[str, str], **own: str) -> dict[str, str]:
    """An engine's environment: of Pillion's own, which may hold secrets, only this replica's keys."""
    foreign = ("PILLION_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
    kept = {name: value for name, value in inherited.items() if not name.startswith(foreign)}
    keys = {
        "PILLION_INFER_KEY": spec.infer_key,
        "PILLION_AGENT_KEY": spec.engine_key,
        "PILLION_ENGINE_SLOTS": str(slots(spec)),
    }
    return kept | {"PYTHONUNBUFFERED": "1"} | keys | own


def slots(spec: ReplicaSpec) -> int:
    """Adapters the engine has room for, the surge slot included; 0 where LoRA is off."""
    return spec.group.lora.slots if spec.group.lora.enabled else 0


def model_argument(source: str) -> tuple[str, str | None]:
    """A base's source as engines take it: a directory or a hub repo, and the repo's revision."""
    kind, _, rest = source.partition(":")
    if kind == "path" and rest:
        return os.path.abspath(os.path.expanduser(rest)), None
    if kind == "hf" and rest:
        repo, _, revision = rest.partition("@")
        return repo, revision or None
    raise InvalidRequestError(f"model source {source!r} must be hf:<repo>[@revision] or path:<directory>.")


def options(raw: Mapping[str, Any], shape: type[Options], engine: str) -> Options:
    """`engine_options` as `shape`. Raises `InvalidRequestError` naming the setting."""
    try:
        return msgspec.convert(raw, shape, strict=False)
    except msgspec.ValidationError as error:
        fields = [field.name for field in msgspec.structs.fields(shape)]
        raise InvalidRequestError(
            f"engine_options for {engine}: {error}; settings are: {', '.join(fields)}.",
            param="engine_options",
        ) from error
