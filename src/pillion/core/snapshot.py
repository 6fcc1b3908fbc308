"""What a gateway knows: the routing snapshot that control publishes and gateways keep (SPEC §5).

It is the only thing the two share. Times are absolute seconds since the epoch.
"""

from __future__ import annotations

import msgspec


class Key(msgspec.Struct, frozen=True):
    """An API key that is not revoked. `digest` as `core.keys.digest`."""

    id: str
    account: str
    digest: str
    scopes: tuple[str, ...]
    expires_at: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class Model(msgspec.Struct, frozen=True):
    """A base or registered model. `account` is None for the catalogue's. `kind` as in the catalogue."""

    name: str
    account: str | None
    kind: str
    lora: bool


class Adapter(msgspec.Struct, frozen=True):
    """An adapter and the version that is live. `labels`: the present one first, then former ones.

    `engine_name` is None while no version is live. `instances` are those that it is attached to or loaded on.
    `expires_at` is the time from which it is no longer served.
    """

    id: str
    row_id: int
    account: str
    name: str
    labels: tuple[str, ...]
    base: str
    version: int | None
    engine_name: str | None
    instances: tuple[int, ...]
    region: str | None = None
    expires_at: float | None = None
    created_at: float = 0.0


class Replica(msgspec.Struct, frozen=True):
    """A replica whose agent was heard. `ready`: its engine answers. `resident`: engine names it confirmed."""

    id: str
    region: str
    url: str
    infer_key: str
    ready: bool
    resident: frozenset[str]


class Instance(msgspec.Struct, frozen=True):
    """A running deployment. `account` is None for a shared pool. `served_model` is the engine's name of the base."""

    id: int
    account: str | None
    model: str
    served_model: str
    openai_compatible: bool
    custom_api_path: str | None
    replicas: tuple[Replica, ...]
    created_at: float = 0.0


class Snapshot(msgspec.Struct, frozen=True):
    """All that routing needs. `version` only grows, also over restarts of control. `pepper` is for `core.keys`.

    `keys` goes from a key's lookup id (`core.keys.Key.lookup`) to the key.
    """

    version: int
    made_at: float
    pepper: bytes
    keys: dict[str, Key]
    models: tuple[Model, ...]
    adapters: tuple[Adapter, ...]
    instances: tuple[Instance, ...]


def encode(snapshot: Snapshot) -> bytes:
    return msgspec.msgpack.encode(snapshot)


def decode(data: bytes) -> Snapshot:
    """Raises `msgspec.DecodeError` or `msgspec.ValidationError`."""
    return msgspec.msgpack.decode(data, type=Snapshot)
