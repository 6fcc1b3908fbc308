"""Rows and facts for tests of control: everything has a default, a test says what matters."""

from __future__ import annotations

from typing import Any

import msgspec

from pillion.core.launch import InstanceSpec
from pillion.core.names import engine_name
from pillion.core.replica import Failure, LoraSpec, Replica, ReplicaStatus, Residency
from pillion.store.rows import Adapter, Attachment, Instance, RoutedAdapter, VersionBytes

NOW = 1_700_000_000.0
DIGEST = "d" * 64
FAILURE = Failure("adapter_ineffective", "it changes nothing")


def spec(placement: dict[str, int] | None = None, **changes: Any) -> InstanceSpec:
    lora = changes.pop("lora", LoraSpec(enabled=True, max_adapters=4))
    return InstanceSpec("hf:q/q", "chat", "sim", placement or {"a": 1}, lora, **changes)


def instance(id: int = 1, **changes: Any) -> Instance:
    made = Instance(
        id=id,
        account_id="acc_a",
        model="qwen",
        spec=msgspec.to_builtins(changes.pop("spec", spec())),
        wanted="running",
        state="pending",
        termination_reason=None,
        created_at=NOW,
        stopped_at=None,
        generation=1,
    )
    return msgspec.structs.replace(made, **changes)


def adapter(row_id: int = 1, live: bool = True, digest: str = DIGEST, **changes: Any) -> RoutedAdapter:
    made = Adapter(
        row_id, f"adp_{row_id}", "acc_a", f"n{row_id}", f"l{row_id}", "qwen", None, "registered", 1, NOW
    )
    made = msgspec.structs.replace(made, live_version=1 if live else None, **changes)
    return RoutedAdapter(made, (made.label,), VersionBytes(1, digest, 8, 100) if live else None)


def attachment(id: int = 1, adapter: int = 1, instance: int = 1, **changes: Any) -> Attachment:
    made = Attachment(
        id=id,
        account_id="acc_a",
        adapter_row_id=adapter,
        instance_id=instance,
        hold="attached",
        pinned=False,
        expires_at=None,
        session_key=None,
        state="attaching",
        ready=0,
        wanted=1,
        error_code=None,
        error_message=None,
        created_at=NOW,
        drain_deadline_s=30.0,
    )
    return msgspec.structs.replace(made, **changes)


def replica(id: str = "r1", **changes: Any) -> Replica:
    made = Replica(id, 1, "a", True, "http://127.0.0.1:1", "token", "infer", NOW)
    return msgspec.structs.replace(made, **changes)


def resident(
    adapter: RoutedAdapter, state: Any = "loaded", digest: str = DIGEST, since: float = NOW
) -> Residency:
    failure = FAILURE if state == "failed" else None
    return Residency(engine_name(adapter.adapter.id, digest), state, since, failure)


def status(id: str = "r1", *adapters: Residency, **changes: Any) -> ReplicaStatus:
    ready = changes.pop("ready", True)
    made = ReplicaStatus(
        replica=id,
        instance=1,
        region="a",
        agent_epoch="e1",
        revision=1,
        engine_epoch=1,
        stage="ready" if ready else "starting",
        stage_since=NOW,
        detail="",
        engine_url="http://127.0.0.1:2",
        ready=ready,
        grant_version=0,
        slots=5,
        adapters=adapters,
        engine={},
    )
    return msgspec.structs.replace(made, **changes)
