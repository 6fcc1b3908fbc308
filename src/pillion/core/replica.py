"""What control, provisioner and agent say to each other about a replica.

`GroupSpec` and `ReplicaSpec` are wishes for processes, `Grant` is what a replica may and must serve, `ReplicaStatus`
the facts its agent reports. All travel as JSON (msgspec). Times are absolute seconds since the epoch.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pillion.core.spans import TraceTo

CACHE_BYTES = 50 * 2**30
Stage = Literal[
    "starting", "pulling", "loading", "warming", "ready", "restarting", "failed", "stopping", "stopped"
]
ResidencyState = Literal["registered", "loading", "loaded", "evicting", "failed"]


class LoraSpec(msgspec.Struct, frozen=True):
    """Caps fixed at launch (SPEC §4). One surge slot comes on top of `max_adapters`."""

    enabled: bool = False
    max_adapters: int = 16
    max_rank: int = 64
    max_active: int | None = None
    on_demand: bool = False

    @property
    def slots(self) -> int:
        return self.max_adapters + 1


class ModelSpec(msgspec.Struct, frozen=True):
    """The base a replica serves. `source` is `hf:<repo>[@revision]` or `path:<directory>`."""

    name: str
    source: str
    kind: str = "chat"


class GroupSpec(msgspec.Struct, frozen=True):
    """The replicas of one instance in one region. Equal `generation` means equal everything but `replicas`."""

    instance: int
    region: str
    replicas: int
    model: ModelSpec
    engine: str
    lora: LoraSpec
    gpu_type: str = "cpu"
    gpu_count: int = 1
    engine_options: dict[str, Any] = {}
    generation: int = 1


class ReplicaSpec(msgspec.Struct, frozen=True):
    """What one agent is started with, kept in its directory (mode 0600: it has the keys).

    `agent_token` opens the agent's own API, `load_key` of that only the asking for loads. `infer_key` can only infer on
    the engine, `engine_key` alone loads and unloads (SPEC §9). `artifacts` is the artifact store's URL, `cache_dir` the
    node's cache by digest, which is to have `cache_bytes` at most.
    """

    id: str
    group: GroupSpec
    agent_token: str
    infer_key: str
    engine_key: str
    artifacts: str
    cache_dir: str
    host: str = "127.0.0.1"
    load_key: str = ""
    cache_bytes: int = CACHE_BYTES
    traces: TraceTo | None = None


class AgentRecord(msgspec.Struct, frozen=True):
    """`agent.json` in a replica's directory: which process serves it and where it listens.

    `created` is the process's start. An agent holds the lock on the file `lock` beside it for as long as it lives.
    """

    pid: int
    created: float
    url: str
    started_at: float


class Replica(msgspec.Struct, frozen=True):
    """A replica as its provisioner sees it. `agent_url` is None until the agent has said where it listens."""

    id: str
    instance: int
    region: str
    alive: bool
    agent_url: str | None
    agent_token: str
    infer_key: str
    started_at: float
    generation: int = 1
    exit_reason: str | None = None
    load_key: str = ""


class GrantEntry(msgspec.Struct, frozen=True):
    """One version a replica is to hold. `hold` attached or pinned entries are never evicted.

    From `expires_at` on the agent stops serving it and unloads it by itself, also while control is away. `account` says no
    more than which entries are of the same one; `weight` and `reserved` are its tier's, where slots are shared.
    """

    engine_name: str
    adapter_id: str
    digest: str
    rank: int
    size_bytes: int
    hold: Literal["attached", "loaded"] = "attached"
    pinned: bool = False
    expires_at: float | None = None
    account: str = ""
    weight: int = 1
    reserved: int = 1


class OnDemand(msgspec.Struct, frozen=True):
    """Whose permits a replica takes: those signed with `key`, for `account`; None: a pool's, for all accounts."""

    key: bytes
    account: str | None


class Grant(msgspec.Struct, frozen=True):
    """All that a replica may serve. `version` only grows; an agent refuses an older one and keeps the last on disk.

    Entries that are no longer there are drained up to their deadline (seconds), then cut off, unloaded and proved gone:
    `leaving` gives it by engine name, `drain_deadline_s` for all others.
    `retry`: engine names whose failure is to be forgotten and tried again.
    `on_demand`: what else it may load when it is asked with a permit; None: nothing. `drop`: engine names that permits
    are no longer good for.
    """

    replica: str
    version: int
    entries: tuple[GrantEntry, ...]
    drain_deadline_s: float = 30.0
    leaving: dict[str, float] = {}
    retry: tuple[str, ...] = ()
    on_demand: OnDemand | None = None
    drop: tuple[str, ...] = ()

    def drain_s(self, engine_name: str) -> float:
        return self.leaving.get(engine_name, self.drain_deadline_s)


class Failure(msgspec.Struct, frozen=True):
    """Why something failed: a code of SPEC §5 or the engine's, and a sentence."""

    code: str
    message: str


class Proof(msgspec.Struct, frozen=True):
    """Largest difference of log-probabilities from the base's, and the base's own noise (nats)."""

    difference: float
    noise: float


class Residency(msgspec.Struct, frozen=True):
    """One version on one replica. `loaded` only after the engine confirmed it and it was proved effective.

    `retry_at`: of one that `failed`, when its agent tries again by itself. `on_demand`: a permit brought it, no grant.
    """

    engine_name: str
    state: ResidencyState
    since: float
    failure: Failure | None = None
    proof: Proof | None = None
    load_ms: float | None = None
    last_used: float | None = None
    retry_at: float | None = None
    on_demand: bool = False


class ReplicaStatus(msgspec.Struct, frozen=True):
    """Facts, as the agent saw them. `revision` grows with every change within one life of the agent (`agent_epoch`).

    `engine_epoch` counts starts of the engine: when it changes, everything was loaded again.
    """

    replica: str
    instance: int
    region: str
    agent_epoch: str
    revision: int
    engine_epoch: int
    stage: Stage
    stage_since: float
    detail: str
    engine_url: str | None
    ready: bool
    grant_version: int
    slots: int
    adapters: tuple[Residency, ...]
    engine: dict[str, Any]
    failure: Failure | None = None
    restarts: int = 0
