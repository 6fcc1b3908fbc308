"""What a gateway knows: the routing snapshot that control publishes and gateways keep (SPEC §5).

It is the only thing the two share. Times are absolute seconds since the epoch. There are very many of these, and none can
hold itself: the garbage collector need not look at them (`gc=False`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from pillion.core.budgets import TokenPrice
from pillion.core.tiers import Tier


class Key(msgspec.Struct, frozen=True, gc=False):
    """An API key that is not revoked. `digest` as `core.keys.digest`. `allow`: CIDRs; anywhere where there are none.

    `suspended`: its account is. `spend_limit`: 1e-6 of the currency per calendar month. `tier`: its account's.
    """

    id: str
    account: str
    digest: str
    scopes: tuple[str, ...]
    expires_at: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    allow: tuple[str, ...] = ()
    suspended: bool = False
    spend_limit: int | None = None
    tier: Tier = "shared"


class Model(msgspec.Struct, frozen=True, gc=False):
    """A base or registered model. `account` is None for the catalogue's. `kind` as in the catalogue.

    `prices`: of its tokens on shared pools, in the order of their instants; None where they are free. `context`: the
    most tokens that a request and its answer may have, where it is known.
    """

    name: str
    account: str | None
    kind: str
    lora: bool
    prices: tuple[TokenPrice, ...] | None = None
    context: int | None = None


class Canary(msgspec.Struct, frozen=True, gc=False):
    """A version beside the live one that gets `share` (0..1) of the requests, where it is resident."""

    version: int
    engine_name: str
    share: float


class Adapter(msgspec.Struct, frozen=True, gc=False):
    """An adapter and the version that is live. `labels`: the present one first, then former ones.

    `engine_name` is None while no version is live. `instances` are those that it is attached to or loaded on.
    `expires_at` is the time from which it is no longer served. `permit` is what on-demand replicas load it for; None where
    none may. `refused`: the engine name of a version, and until when it is in quarantine.
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
    rank: int = 0
    permit: bytes | None = None
    canary: Canary | None = None
    refused: tuple[str, float] | None = None


class Replica(msgspec.Struct, frozen=True, gc=False):
    """A replica whose agent was heard. `ready`: its engine answers. `resident`: engine names it confirmed.

    `agent_url` and `load_key` are for asking its agent to load on demand. `max_requests`: how many its engine answers at a
    time, where it says so.
    """

    id: str
    region: str
    url: str
    infer_key: str
    ready: bool
    resident: frozenset[str]
    agent_url: str | None = None
    load_key: str = ""
    max_requests: int | None = None


class Instance(msgspec.Struct, frozen=True, gc=False):
    """A running deployment. `account` is None for a shared pool. `served_model` is the engine's name of the base.

    `on_demand`: its replicas load what they are asked for, up to `max_rank`.
    """

    id: int
    account: str | None
    model: str
    served_model: str
    openai_compatible: bool
    custom_api_path: str | None
    replicas: tuple[Replica, ...]
    created_at: float = 0.0
    on_demand: bool = False
    max_rank: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Owned:
    """What is one account's. As long as nothing of it changes it stays the same object."""

    keys: Mapping[str, Key] = field(default_factory=dict)
    models: tuple[Model, ...] = ()
    adapters: tuple[Adapter, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What a snapshot is made of: by account, the catalogue's models, and instances in the order of their ids.

    `touched`: by account as it was before, and the accounts that may be others since; None where nobody knows.
    """

    accounts: Mapping[str | None, Owned]
    models: tuple[Model, ...] = ()
    instances: tuple[Instance, ...] = ()
    touched: tuple[Mapping[str | None, Owned], Collection[str | None]] | None = None

    @property
    def all_models(self) -> tuple[Model, ...]:
        return (*self.models, *(model for owned in self.accounts.values() for model in owned.models))


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot"):
    """All that routing needs. `version` only grows, also over restarts of control. `pepper` is for `core.keys`.

    `keys` goes from a key's lookup id (`core.keys.Key.lookup`) to the key. `epoch` names who made it: deltas are only to
    snapshots of the same.
    """

    version: int
    made_at: float
    pepper: bytes
    keys: dict[str, Key]
    models: tuple[Model, ...]
    adapters: tuple[Adapter, ...]
    instances: tuple[Instance, ...]
    epoch: str = ""


class Delta(msgspec.Struct, frozen=True, tag="delta"):
    """What makes the snapshot of version `since` that of `version`. What is new or other is whole, what is gone is named:
    keys by None, adapters by account and row id. `models` is None where nothing about them changed. `replicas` are those
    that changed, each with its instance's id, where its instance is otherwise the same.
    """

    since: int
    version: int
    made_at: float
    keys: dict[str, Key | None]
    models: tuple[Model, ...] | None
    adapters: tuple[Adapter, ...]
    gone_adapters: tuple[tuple[str, int], ...]
    instances: tuple[Instance, ...]
    gone_instances: tuple[int, ...]
    replicas: tuple[tuple[int, Replica], ...] = ()

    @property
    def empty(self) -> bool:
        """Only the version changes."""
        told = self.keys or self.adapters or self.gone_adapters or self.instances or self.gone_instances
        return not told and not self.replicas and self.models is None

    @property
    def replicas_by_instance(self) -> dict[int, dict[str, Replica]]:
        found: dict[int, dict[str, Replica]] = {}
        for instance, replica in self.replicas:
            found.setdefault(instance, {})[replica.id] = replica
        return found


def encode(news: Snapshot | Delta) -> bytes:
    return msgspec.msgpack.encode(news)


def decode(data: bytes) -> Snapshot:
    """Raises `msgspec.DecodeError` or `msgspec.ValidationError`, also for a delta."""
    return msgspec.msgpack.decode(data, type=Snapshot)


def decode_news(data: bytes) -> Snapshot | Delta:
    """Raises `msgspec.DecodeError` or `msgspec.ValidationError`."""
    return msgspec.msgpack.decode(data, type=Snapshot | Delta)


def whole(content: Content, version: int, made_at: float, pepper: bytes, epoch: str) -> Snapshot:
    owned = content.accounts.values()
    return Snapshot(
        version=version,
        made_at=made_at,
        pepper=pepper,
        keys={lookup: key for one in owned for lookup, key in one.keys.items()},
        models=content.all_models,
        adapters=tuple(adapter for one in owned for adapter in one.adapters),
        instances=content.instances,
        epoch=epoch,
    )


def difference(before: Content, after: Content, since: int, version: int, made_at: float) -> Delta:
    """What makes the one the other. Accounts and instances that are the same objects are not looked into."""
    keys: dict[str, Key | None] = {}
    gone_keys: dict[str, Key | None] = {}
    adapters: list[Adapter] = []
    gone_adapters: list[tuple[str, int]] = []
    models_differ = before.models != after.models
    for account in _touched(before, after):
        old, new = before.accounts.get(account, _NOTHING), after.accounts.get(account, _NOTHING)
        keys |= {lookup: key for lookup, key in new.keys.items() if old.keys.get(lookup) != key}
        gone_keys |= dict.fromkeys(old.keys.keys() - new.keys.keys())
        there = {_place(adapter): adapter for adapter in old.adapters}
        adapters += [adapter for adapter in new.adapters if there.pop(_place(adapter), None) != adapter]
        gone_adapters += there
        models_differ = models_differ or old.models != new.models
    known = {instance.id: instance for instance in before.instances}
    instances: list[Instance] = []
    replicas: list[tuple[int, Replica]] = []
    for instance in after.instances:
        old_one = known.pop(instance.id, None)
        if old_one is not None and _same_but_replicas(old_one, instance):
            pairs = zip(old_one.replicas, instance.replicas, strict=True)
            replicas += [(instance.id, new) for old, new in pairs if old is not new and old != new]
        else:
            instances.append(instance)
    return Delta(
        since=since,
        version=version,
        made_at=made_at,
        keys=gone_keys | keys,
        models=after.all_models if models_differ else None,
        adapters=tuple(adapters),
        gone_adapters=tuple(gone_adapters),
        instances=tuple(instances),
        gone_instances=tuple(known),
        replicas=tuple(replicas),
    )


def with_replicas(instance: Instance, replicas: Mapping[str, Replica]) -> Instance:
    """The same with these in place of those of the same ids."""
    return replace(instance, replicas=tuple(replicas.get(old.id, old) for old in instance.replicas))


def same_but_resident(one: Replica, other: Replica) -> bool:
    return replace(one, resident=frozenset()) == replace(other, resident=frozenset())


def _same_but_replicas(one: Instance, other: Instance) -> bool:
    """Nothing else differs, and they are those of the same ids."""
    if one is other:
        return True
    ids = [replica.id for replica in one.replicas] == [replica.id for replica in other.replicas]
    return ids and replace(one, replicas=()) == replace(other, replicas=())


_NOTHING = Owned()


def _touched(before: Content, after: Content) -> Collection[str | None]:
    """Accounts whose objects differ, and perhaps others."""
    if after.touched is not None and after.touched[0] is before.accounts:
        return after.touched[1]
    known, now = before.accounts, after.accounts
    return [account for account, owned in now.items() if known.get(account) is not owned] + [
        *known.keys() - now.keys()
    ]


def patched(snapshot: Snapshot, delta: Delta) -> Snapshot:
    """The snapshot that `delta` is to, from the one that it is from. Raises `ValueError` for another."""
    if delta.since != snapshot.version:
        raise ValueError(f"a delta from version {delta.since} does not fit version {snapshot.version}")
    keys = {**snapshot.keys, **delta.keys}
    adapters = {_place(a): a for a in snapshot.adapters} | {_place(a): a for a in delta.adapters}
    instances = {i.id: i for i in snapshot.instances} | {i.id: i for i in delta.instances}
    for id, replicas in delta.replicas_by_instance.items():
        instances[id] = with_replicas(instances[id], replicas)
    return Snapshot(
        version=delta.version,
        made_at=delta.made_at,
        pepper=snapshot.pepper,
        keys={lookup: key for lookup, key in keys.items() if key is not None},
        models=snapshot.models if delta.models is None else delta.models,
        adapters=tuple(a for place, a in adapters.items() if place not in delta.gone_adapters),
        instances=tuple(i for id, i in instances.items() if id not in delta.gone_instances),
        epoch=snapshot.epoch,
    )


def _place(adapter: Adapter) -> tuple[str, int]:
    return adapter.account, adapter.row_id
