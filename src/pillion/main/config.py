"""The configuration: `pillion.toml`, then the environment (`PILLION_…`), then the command line (SPEC §12)."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pillion.core.addresses import network
from pillion.core.catalogue import Catalogue, CatalogueModel, GpuType, Pool, Provider, Region
from pillion.core.errors import InvalidRequestError
from pillion.core.launch import MAX_ADAPTERS
from pillion.core.money import MAX_HOURLY, decimal, micros
from pillion.core.names import is_name
from pillion.core.replica import CACHE_BYTES
from pillion.core.tiers import CAPS, Caps, Tier, Turns

ENVIRONMENT_PREFIX = "PILLION_"
ENGINES = ("vllm", "sim")


class ConfigError(InvalidRequestError):
    """The configuration cannot be used; the message names the setting."""


class Database(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: str = ""


class Artifacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`cache_gib`: what copies of adapters may take on a node."""

    url: str = ""
    cache_gib: Annotated[float, msgspec.Meta(ge=0)] = CACHE_BYTES / 2**30


Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Days = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
PositiveShare = Annotated[float, msgspec.Meta(gt=0, le=1)]
Hours = Annotated[float, msgspec.Meta(gt=0, le=8760)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Workers = Annotated[int, msgspec.Meta(ge=1, le=256)]


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`public_url` is what clients call, where it is not host and port. `data_dir` holds everything that is kept.

    `trusted_proxies`: addresses and CIDRs of proxies in front, separated by commas; `metrics_from`: of those who may read
    `/metrics` without a key. `workers`: processes of the gateway, each with a processor's worth of requests.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    data_dir: str = "~/.pillion"
    public_url: str = ""
    internal_url: str = ""
    snapshot_max_age_s: Seconds = 86400.0
    workers: Workers = 1
    trusted_proxies: str = ""
    metrics_from: str = "127.0.0.0/8, ::1"
    access_log: bool = False


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`max_rank` is the most an adapter may have. `drain_s`: how long a detach waits for requests in flight.

    `flip_drain_s`: how long a version that was replaced does. Of shared pools, for each gateway: `pool_requests` are given
    to a replica at once (0: what its engine takes), `pool_share` of them at most one account's; `pool_waiting` wait for it,
    each for `pool_wait_s`. `media_urls`: whether requests may name media by URL, which engines fetch. `request_fields`:
    names of engines' own fields that requests may have beyond the usual ones, separated by commas.
    """

    max_rank: Positive = 64
    drain_s: Seconds = 30.0
    flip_drain_s: Seconds = 300.0
    pool_requests: Count = Turns.at_once
    pool_share: PositiveShare = Turns.share
    pool_waiting: Positive = Turns.waiting
    pool_wait_s: Seconds = Turns.wait_s
    models_root: str = ""
    media_urls: bool = False
    request_fields: str = ""


class Auth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`session_hours`: how long a browser stays logged in."""

    session_hours: Hours = 24.0


class Oidc(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The identity provider that members may log in through; none without an `issuer`.

    `client_secret_env`: the variable that has the secret. `account`: whose member becomes who has no invite.
    """

    issuer: str = ""
    client_id: str = ""
    client_secret_env: str = ""
    scopes: str = "openid email profile"
    account: str = ""


class Tiers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an account of each tier may have, as `core.tiers.Caps` says."""

    shared_adapters: Positive = CAPS["shared"].adapters
    shared_adapter_bytes: Positive = CAPS["shared"].adapter_bytes
    shared_uploads: Positive = CAPS["shared"].uploads
    shared_requests: Positive = CAPS["shared"].requests
    shared_loads_per_minute: Positive = CAPS["shared"].loads_per_minute
    shared_weight: Positive = CAPS["shared"].weight
    shared_slots: Count = CAPS["shared"].slots
    shared_keys: Positive = CAPS["shared"].keys
    shared_members: Positive = CAPS["shared"].members
    shared_instances: Positive = CAPS["shared"].instances
    shared_models: Positive = CAPS["shared"].models
    reserved_adapters: Positive = CAPS["reserved"].adapters
    reserved_adapter_bytes: Positive = CAPS["reserved"].adapter_bytes
    reserved_uploads: Positive = CAPS["reserved"].uploads
    reserved_requests: Positive = CAPS["reserved"].requests
    reserved_loads_per_minute: Positive = CAPS["reserved"].loads_per_minute
    reserved_weight: Positive = CAPS["reserved"].weight
    reserved_slots: Count = CAPS["reserved"].slots
    reserved_keys: Positive = CAPS["reserved"].keys
    reserved_members: Positive = CAPS["reserved"].members
    reserved_instances: Positive = CAPS["reserved"].instances
    reserved_models: Positive = CAPS["reserved"].models
    dedicated_adapters: Positive = CAPS["dedicated"].adapters
    dedicated_adapter_bytes: Positive = CAPS["dedicated"].adapter_bytes
    dedicated_uploads: Positive = CAPS["dedicated"].uploads
    dedicated_requests: Positive = CAPS["dedicated"].requests
    dedicated_loads_per_minute: Positive = CAPS["dedicated"].loads_per_minute
    dedicated_weight: Positive = CAPS["dedicated"].weight
    dedicated_slots: Count = CAPS["dedicated"].slots
    dedicated_keys: Positive = CAPS["dedicated"].keys
    dedicated_members: Positive = CAPS["dedicated"].members
    dedicated_instances: Positive = CAPS["dedicated"].instances
    dedicated_models: Positive = CAPS["dedicated"].models

    @property
    def caps(self) -> dict[Tier, Caps]:
        names = [field.name for field in fields(Caps)]
        return {tier: Caps(**{name: getattr(self, f"{tier}_{name}") for name in names}) for tier in CAPS}


class Tracing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`endpoint`: a collector's, for OTLP over HTTP; no traces without one. `sample`: of traces that begin here."""

    endpoint: str = ""
    sample: Share = 1.0


class Billing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = False


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many days what is told of the past is kept; 0 is for ever. Jobs stay, without their logs."""

    events_days: Days = 90.0
    audit_days: Days = 365.0
    job_logs_days: Days = 90.0
    usage_days: Days = 400.0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    server: Server = Server()
    database: Database = Database()
    artifacts: Artifacts = Artifacts()
    limits: Limits = Limits()
    tiers: Tiers = Tiers()
    auth: Auth = Auth()
    oidc: Oidc = Oidc()
    billing: Billing = Billing()
    tracing: Tracing = Tracing()
    retention: Retention = Retention()
    regions: tuple[Region, ...] = ()
    models: tuple[CatalogueModel, ...] = ()
    pools: tuple[Pool, ...] = ()
    gpu_types: tuple[GpuType, ...] = ()
    providers: tuple[Provider, ...] = ()

    @property
    def data_dir(self) -> Path:
        return Path(self.server.data_dir).expanduser().absolute()

    def arguments(self, path: Path | None) -> list[str]:
        """What a child that is to have this configuration is started with; the environment it has already."""
        return ["--data-dir", str(self.data_dir), *(["--config", str(path)] if path else [])]

    @property
    def turns(self) -> Turns:
        """Of one worker: together they give a replica what one gateway may."""
        limits = self.limits
        return Turns(
            limits.pool_requests,
            limits.pool_share,
            limits.pool_waiting,
            limits.pool_wait_s,
            self.server.workers,
        )

    @property
    def trusted_proxies(self) -> tuple[str, ...]:
        """CIDRs. Raises `ConfigError`."""
        return _networks("server.trusted_proxies", self.server.trusted_proxies)

    @property
    def metrics_from(self) -> tuple[str, ...]:
        """CIDRs. Raises `ConfigError`."""
        return _networks("server.metrics_from", self.server.metrics_from)

    @property
    def request_fields(self) -> frozenset[str]:
        return frozenset(name for text in self.limits.request_fields.split(",") if (name := text.strip()))

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
        """What is offered. A region of which nothing is said has this machine's processors."""
        here = {"cpu": os.cpu_count() or 1}
        regions = tuple(
            region if region.gpus else msgspec.structs.replace(region, gpus=here)
            for region in self.regions or (Region("local"),)
        )
        models = self.models or (CatalogueModel("qwen3-0.6b", "hf:Qwen/Qwen3-0.6B"),)
        return Catalogue(regions, models, self.pools, self.gpu_types)


def load(path: Path | None, overrides: Mapping[str, Any], environment: Mapping[str, str]) -> Config:
    """The configuration of `path` with the environment's and then `overrides`' `server` settings on top.

    Raises `ConfigError` naming what is wrong and where.
    """
    where = str(path) if path else "the environment"
    try:
        raw = tomllib.loads(path.read_text("utf-8")) if path else {}
        msgspec.convert(raw, Config)  # what the file says is wrong is said of the file
        where = "the environment"
        for section, settings in _from_environment(environment).items():
            raw[section] = {**raw.get(section, {}), **settings} if isinstance(settings, dict) else settings
        raw["server"] = {**raw.get("server", {}), **{k: v for k, v in overrides.items() if v is not None}}
        config = msgspec.convert(raw, Config, strict=False)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{where}: {error}") from error
    _check(config)
    return config


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """`PILLION_SERVER_PORT=…` sets `[server] port`; `PILLION_MODELS='[{…}]'` (JSON) sets a list. Empty is not set."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(Config):
        name = ENVIRONMENT_PREFIX + field.name.upper()
        if not (isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)):
            if environment.get(name):
                try:
                    found[field.name] = msgspec.json.decode(environment[name])
                except msgspec.DecodeError as error:
                    raise ConfigError(f"{name} is not JSON: {error}") from error
            continue
        for setting in msgspec.structs.fields(field.type):
            value = environment.get(f"{name}_{setting.name.upper()}")
            if value:
                found.setdefault(field.name, {})[setting.name] = value
    for short in ("host", "port", "data_dir"):
        value = environment.get(f"{ENVIRONMENT_PREFIX}{short.upper()}")
        if value:
            found.setdefault("server", {}).setdefault(short, value)
    return found


def _networks(setting: str, told: str) -> tuple[str, ...]:
    try:
        return tuple(network(text) for text in told.split(",") if text.strip())
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from error


def _check(config: Config) -> None:
    """What types cannot say. Raises `ConfigError`."""
    catalogue = config.catalogue()
    _ = config.trusted_proxies, config.metrics_from
    _check_oidc(config.oidc)
    if not config.artifacts_url.startswith("file:///"):
        raise ConfigError(f"artifacts.url {config.artifacts_url!r} must be file:///an/absolute/directory")
    _check_names(catalogue)
    for model in catalogue.models:
        _check_model(model)
    for pool in catalogue.pools:
        _check_pool(pool, catalogue)
    for gpu in catalogue.gpu_types:
        _check_rate(gpu)


def _check_oidc(oidc: Oidc) -> None:
    if oidc.issuer and not oidc.issuer.startswith(("https://", "http://127.0.0.1", "http://localhost")):
        raise ConfigError(f"oidc.issuer {oidc.issuer!r} must begin with https://")


def _check_names(catalogue: Catalogue) -> None:
    named = {
        "regions": [region.name for region in catalogue.regions],
        "models": [model.name for model in catalogue.models],
        "gpu_types": [gpu.name for gpu in catalogue.gpu_types],
        "pools": [pool.model for pool in catalogue.pools],
    }
    for section, names in named.items():
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ConfigError(f"[[{section}]] has two entries for {min(twice)!r}")
    for section in ("regions", "models"):
        for name in named[section]:
            if not is_name(name):
                raise ConfigError(
                    f"[[{section}]] name {name[:80]!r} must be 1 to 63 of a-z 0-9 . _ -, beginning with a letter or digit"
                )


def _check_model(model: CatalogueModel) -> None:
    if not model.source.startswith(("hf:", "path:/")):
        raise ConfigError(
            f"[[models]] {model.name}: source {model.source!r} must be hf:<repo> or path:</absolute/directory>"
        )
    if model.engine not in ENGINES:
        raise ConfigError(f"[[models]] {model.name}: engine {model.engine!r} is none of {', '.join(ENGINES)}")
    if model.kind == "embedding" and model.lora:
        raise ConfigError(f"[[models]] {model.name}: embedding models never take LoRA; set lora = false")


def _check_rate(gpu: GpuType) -> None:
    try:
        rate = micros(gpu.rate_per_hour, "rate_per_hour")
    except InvalidRequestError as error:
        raise ConfigError(f"[[gpu_types]] {gpu.name}: {error.message}") from error
    if rate > MAX_HOURLY:
        raise ConfigError(f"[[gpu_types]] {gpu.name}: rate_per_hour is over {decimal(MAX_HOURLY)}")


def _check_pool(pool: Pool, catalogue: Catalogue) -> None:
    if catalogue.model(pool.model) is None:
        raise ConfigError(f"[[pools]] model {pool.model!r} is not in [[models]]")
    if pool.replicas < 1:
        raise ConfigError(f"[[pools]] {pool.model}: replicas must be at least 1")
    if not 1 <= pool.max_adapters <= MAX_ADAPTERS:
        raise ConfigError(f"[[pools]] {pool.model}: max_adapters must be 1 to {MAX_ADAPTERS}")
