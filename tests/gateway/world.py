"""Snapshots for tests: two accounts, a base, adapters, instances."""

from __future__ import annotations

import secrets

from pillion.core import keys, names
from pillion.core.snapshot import Adapter, Instance, Key, Model, Replica, Snapshot

PEPPER = b"pepper"
ACME, OTHER = "acc_acme", "acc_other"
BASE = "qwen3-4b"


def adapter_id(row_id: int) -> str:
    return f"adp_{row_id:020d}"


def make_adapter(row_id: int, account: str = ACME, **fields: object) -> Adapter:
    """Adapter `row_id`, named and labelled after it, live, attached to instance 1."""
    version = fields.pop("version", 1)
    engine = names.engine_name(adapter_id(row_id), f"{row_id:064x}")
    values: dict[str, object] = {
        "name": f"tune-{row_id}",
        "labels": (f"ft{row_id}",),
        "base": BASE,
        "engine_name": engine,
        "instances": (1,),
    }
    return Adapter(
        id=adapter_id(row_id), row_id=row_id, account=account, version=version, **(values | fields)
    )  # type: ignore[arg-type]


def make_replica(name: str, *resident: Adapter, url: str = "http://127.0.0.1:9", **fields: object) -> Replica:
    values: dict[str, object] = {"region": "local", "infer_key": f"infer-{name}", "ready": True}
    held = frozenset(adapter.engine_name for adapter in resident if adapter.engine_name)
    return Replica(id=name, url=url, resident=held, **(values | fields))  # type: ignore[arg-type]


def make_instance(number: int, *replicas: Replica, account: str | None = ACME, **fields: object) -> Instance:
    values: dict[str, object] = {
        "model": BASE,
        "served_model": f"served/{BASE}",
        "openai_compatible": True,
        "custom_api_path": None,
    }
    return Instance(id=number, account=account, replicas=replicas, **(values | fields))  # type: ignore[arg-type]


def make_key(account: str = ACME, *scopes: str) -> tuple[str, tuple[str, Key]]:
    """The key's text, and its entry in a snapshot."""
    key = keys.mint(secrets.choice)
    digest = keys.digest(PEPPER, key.text)
    return key.text, (key.lookup, Key(f"key_{key.lookup}", account, digest, scopes or ("inference",)))


def make_snapshot(
    *parts: Adapter | Instance | Model | tuple[str, Key], version: int = 1, made_at: float = 1_000.0
) -> Snapshot:
    """What is given, and the base in the catalogue."""
    return Snapshot(
        version=version,
        made_at=made_at,
        pepper=PEPPER,
        keys=dict(part for part in parts if isinstance(part, tuple)),
        models=(Model(BASE, None, "chat", True), *(part for part in parts if isinstance(part, Model))),
        adapters=tuple(part for part in parts if isinstance(part, Adapter)),
        instances=tuple(part for part in parts if isinstance(part, Instance)),
    )
