"""What the control API shows, noun by noun. Times are seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from pillion.control.billing_views import WalletView

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """A page of a list. `next` is the cursor to pass as `after` while `has_more`."""

    data: list[T]
    has_more: bool = False
    next: str | None = None
    object: Literal["list"] = "list"


@dataclass(frozen=True)
class ErrorView:
    code: str
    message: str


@dataclass(frozen=True)
class AttachmentView:
    """`ready` of `wanted` replicas have confirmed it. `attached` is false for one that is merely loaded."""

    adapter_id: str
    adapter_row_id: int
    adapter: str
    instance_id: int
    attached: bool
    pinned: bool
    state: str
    ready: int
    wanted: int
    created_at: float
    expires_at: float | None = None
    session_key: str | None = None
    error: ErrorView | None = None
    aliases: list[str] = field(default_factory=list)
    unacknowledged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AdapterView:
    """`version` is live, `wanted_version` going live, and `previous_version` what a rollback goes back to."""

    id: str
    row_id: int
    name: str
    label: str
    aliases: list[str]
    base_model: str
    region: str | None
    state: str
    version: int | None
    digest: str | None
    rank: int | None
    alpha: float | None
    target_modules: list[str]
    size_bytes: int | None
    attachments: list[AttachmentView]
    warnings: list[str]
    created_at: float
    wanted_version: int | None = None
    previous_version: int | None = None
    canary: CanaryView | None = None
    object: Literal["adapter"] = "adapter"


@dataclass(frozen=True)
class CanaryView:
    version: int
    share: float


@dataclass(frozen=True)
class VersionView:
    """`state`: live, going_live, canary, failed, former or kept_back. On its way, `ready` of `wanted` replicas have it.

    `error`: why it did not go live. `unacknowledged`: gateways that have not heard of the change yet.
    """

    version: int
    digest: str
    live: bool
    rank: int
    alpha: float
    target_modules: list[str]
    size_bytes: int
    warnings: list[str]
    source: dict[str, Any]
    created_at: float
    state: str = "live"
    ready: int | None = None
    wanted: int | None = None
    share: float | None = None
    error: ErrorView | None = None
    live_at: float | None = None
    unacknowledged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LoraView:
    enabled: bool
    max_adapters: int
    max_rank: int
    max_active: int
    on_demand: bool


@dataclass(frozen=True)
class ResidentView:
    """A version on a replica, as its agent last reported it."""

    adapter_id: str
    state: str
    since: float
    error: ErrorView | None = None
    load_ms: float | None = None


@dataclass(frozen=True)
class ReplicaView:
    id: str
    region: str
    state: str
    ready: bool
    detail: str
    since: float | None
    restarts: int
    adapters: list[ResidentView]
    engine: dict[str, Any]
    error: ErrorView | None = None


@dataclass(frozen=True)
class InstanceView:
    """`model_string` is what to put in `model` to call the bare base on this instance."""

    id: int
    model: str
    model_string: str
    state: str
    shared: bool
    replicas: list[ReplicaView]
    lora: LoraView
    gpu_type: str
    gpu_count: int
    engine: str
    regions: dict[str, int]
    attachments: list[AttachmentView]
    termination_reason: str | None
    created_at: float
    openai_compatible: bool = True
    custom_api_path: str | None = None
    object: Literal["instance"] = "instance"


@dataclass(frozen=True)
class EligibleView:
    """Whether an instance can take an adapter; `reasons` say why not."""

    instance_id: int
    model: str
    eligible: bool
    reasons: list[str]
    slots: int
    used: int
    free: int


@dataclass(frozen=True)
class JobView:
    id: str
    kind: str
    state: str
    progress: float
    message: str
    subject: dict[str, Any]
    error: ErrorView | None
    created_at: float
    updated_at: float
    log: list[str] = field(default_factory=list)
    object: Literal["job"] = "job"


@dataclass(frozen=True)
class ImportView:
    """What an import answers: the adapter, and the job that brings its bytes."""

    adapter: AdapterView
    job: JobView


@dataclass(frozen=True)
class KeyView:
    """`key` is there only in the answer that made it. `created_by`: the member who did, where one did."""

    id: str
    name: str
    scopes: list[str]
    created_at: float
    revoked_at: float | None = None
    key: str | None = None
    unacknowledged: list[str] = field(default_factory=list)
    expires_at: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    allow: list[str] = field(default_factory=list)
    spend_limit: int | None = None
    created_by: str | None = None


@dataclass(frozen=True)
class UsageEventView:
    """One request. `status` is its HTTP status, or `lost` where its gateway died; null tokens were not told."""

    id: int
    at: float
    request_id: str
    status: str
    key_id: str
    model: str
    base_model: str
    adapter_id: str | None
    adapter_version: int | None
    instance_id: int
    replica: str
    region: str
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    ttft_ms: float | None
    duration_ms: float
    cold: bool


@dataclass(frozen=True)
class UsageSumView:
    """`group` as asked for: a base model, an adapter's id ("" for bases), a key's id, a day. `name`: what it is called.

    `cost`: of tokens on shared pools, in 1e-6 of the currency.
    """

    group: str
    name: str | None
    requests: int
    errors: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: int = 0


@dataclass(frozen=True)
class UsageSummary:
    window: str
    group_by: str
    since: float
    until: float
    total: UsageSumView
    data: list[UsageSumView]
    object: Literal["usage_summary"] = "usage_summary"


@dataclass(frozen=True)
class Coverage:
    """The share, 0 to 1, of requests and of tokens that was served through adapters."""

    requests: float
    tokens: float


@dataclass(frozen=True)
class UsageSnapshot:
    """`paid`: what was posted since the month began, for GPUs' time and for tokens, in 1e-6 of the currency."""

    since: float
    until: float
    total: UsageSumView
    by_model: list[UsageSumView]
    by_day: list[UsageSumView]
    adapter_coverage: Coverage
    wallet: WalletView
    paid: int
    paid_by_model: dict[str, int]
    paid_by_day: dict[str, int]
    object: Literal["billing_snapshot"] = "billing_snapshot"


@dataclass(frozen=True)
class AccountView:
    """`adapters` of the `max_adapters` that its tier may have."""

    id: str
    name: str
    tier: str
    created_at: float
    local_only: bool = False
    suspended_at: float | None = None
    adapters: int = 0
    max_adapters: int = 0
    max_adapter_bytes: int = 0
    unacknowledged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ModelView:
    """A base model one can launch: the catalogue's (`registered` false) or the account's own."""

    name: str
    kind: str
    source: str
    lora: bool
    engine: str
    registered: bool = False
    region: str | None = None
    created_at: float | None = None


@dataclass(frozen=True)
class RegionView:
    name: str
    gpus: dict[str, int]


@dataclass(frozen=True)
class GpuTypeView:
    name: str
    memory_gib: float
    rate_per_hour: str


@dataclass(frozen=True)
class BackendAdapterView:
    """`on_demand`: it was loaded for requests and may go again, no wish holds it."""

    adapter_id: str
    name: str
    state: str
    pinned: bool
    last_used: float | None
    expires_at: float | None
    error: ErrorView | None
    rank: int | None = None
    on_demand: bool = False


@dataclass(frozen=True)
class BackendView:
    """One instance in `GET /v1/adapters/status`: its slots and what holds them."""

    instance_id: int
    model: str
    slots: int
    used: int
    free: int
    adapters: list[BackendAdapterView]


@dataclass(frozen=True)
class EventView:
    id: int
    at: float
    kind: str
    subject: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class Deleted:
    id: str
    deleted: bool = True
    unacknowledged: list[str] = field(default_factory=list)
