"""The configuration: `pillion.toml`, then the environment (`PILLION_…`), then the command line (SPEC §12)."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pillion.core.catalogue import Catalogue, CatalogueModel, GpuType, Pool, Provider, Region
from pillion.core.errors import InvalidRequestError
from pillion.core.names import check_model_name

ENVIRONMENT_PREFIX = "PILLION_"


class ConfigError(InvalidRequestError):
    """The configuration cannot be used; the message names the setting."""


class Database(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: str = ""


class Artifacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: str = ""


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`public_url` is what clients call, where it is not host and port. `data_dir` holds everything that is kept."""

    host: str = "127.0.0.1"
    port: int = 8080
    data_dir: str = "~/.pillion"
    public_url: str = ""
    internal_url: str = ""
    snapshot_max_age_s: float = 86400.0


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`max_rank` is the most an adapter may have. `drain_s`: how long a detach waits for requests in flight."""

    max_rank: int = 64
    max_adapter_bytes: int = 500_000_000
    drain_s: float = 30.0
    models_root: str = ""


class Billing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = False


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    server: Server = Server()
    database: Database = Database()
    artifacts: Artifacts = Artifacts()
    limits: Limits = Limits()
    billing: Billing = Billing()
    regions: tuple[Region, ...] = ()
    models: tuple[CatalogueModel, ...] = ()
    pools: tuple[Pool, ...] = ()
    gpu_types: tuple[GpuType, ...] = ()
    providers: tuple[Provider, ...] = ()

    @property
    def data_dir(self) -> Path:
        return Path(self.server.data_dir).expanduser().absolute()

    @property
    def database_url(self) -> str:
        return self.database.url or f"sqlite:///{self.data_dir / 'pillion.db'}"

    @property
    def artifacts_url(self) -> str:
        return self.artifacts.url or f"file://{self.data_dir / 'artifacts'}"

    @property
    def models_root(self) -> Path:
        """Where accounts' own `path:` models lie, one directory per account (SPEC §9)."""
        return (
            Path(self.limits.models_root).expanduser()
            if self.limits.models_root
            else self.data_dir / "models"
        )

    def catalogue(self) -> Catalogue:
        regions = self.regions or (Region("local", gpus={"cpu": os.cpu_count() or 1}),)
        models = self.models or (CatalogueModel("qwen3-0.6b", "hf:Qwen/Qwen3-0.6B"),)
        return Catalogue(regions, models, self.pools, self.gpu_types)


def load(path: Path | None, overrides: Mapping[str, Any], environment: Mapping[str, str]) -> Config:
    """The configuration of `path` with the environment's and then `overrides`' `server` settings on top.

    Raises `ConfigError` naming what is wrong and where.
    """
    where = str(path) if path else "the environment"
    try:
        raw = tomllib.loads(path.read_text()) if path else {}
        for section, settings in _from_environment(environment).items():
            raw[section] = {**raw.get(section, {}), **settings} if isinstance(settings, dict) else settings
        raw["server"] = {**raw.get("server", {}), **{k: v for k, v in overrides.items() if v is not None}}
        config = msgspec.convert(raw, Config, strict=False)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{where}: {error}") from error
    _check(config)
    return config


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """`PILLION_SERVER_PORT=…` sets `[server] port`; `PILLION_MODELS='[{…}]'` (JSON) sets a list."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(Config):
        name = ENVIRONMENT_PREFIX + field.name.upper()
        if not (isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)):
            if name in environment:
                try:
                    found[field.name] = msgspec.json.decode(environment[name])
                except msgspec.DecodeError as error:
                    raise ConfigError(f"{name} is not JSON: {error}") from error
            continue
        for setting in msgspec.structs.fields(field.type):
            value = environment.get(f"{name}_{setting.name.upper()}")
            if value is not None:
                found.setdefault(field.name, {})[setting.name] = value
    for short in ("host", "port", "data_dir"):
        value = environment.get(f"{ENVIRONMENT_PREFIX}{short.upper()}")
        if value is not None:
            found.setdefault("server", {}).setdefault(short, value)
    return found


def _check(config: Config) -> None:
    catalogue = config.catalogue()
    for kind, names in (
        ("regions", [r.name for r in catalogue.regions]),
        ("models", [m.name for m in catalogue.models]),
        ("gpu_types", [g.name for g in catalogue.gpu_types]),
    ):
        if len(set(names)) != len(names):
            raise ConfigError(f"[[{kind}]] has two entries with the same name: {sorted(names)}")
    for name in [m.name for m in catalogue.models] + [r.name for r in catalogue.regions]:
        check_model_name(name)
    for model in catalogue.models:
        if not model.source.startswith(("hf:", "path:")):
            raise ConfigError(
                f"[[models]] {model.name}: source {model.source!r} must begin with hf: or path:"
            )
        if model.kind == "embedding" and model.lora:
            raise ConfigError(f"[[models]] {model.name}: embedding models never take LoRA; set lora = false")
    for pool in catalogue.pools:
        if catalogue.model(pool.model) is None:
            raise ConfigError(f"[[pools]] model {pool.model!r} is not in [[models]]")
