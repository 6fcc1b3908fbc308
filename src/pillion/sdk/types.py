"""What the server answers, typed. Unknown fields are kept in `raw`, missing ones have a default.

Times are seconds since the epoch, sizes are bytes.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from pillion.sdk.errors import PillionProtocolError


class Record(msgspec.Struct, kw_only=True):
    """`raw` is the object as the server sent it, for records inside another one as well."""

    raw: dict[str, Any] = {}


class Failure(msgspec.Struct, kw_only=True):
    """Why something failed, as in `error` of what failed."""

    code: str = "failed"
    message: str = ""
    reasons: list[str] = []


class Attachment(Record, kw_only=True):
    """The wish that an adapter be served by an instance: `ready` of the `wanted` replicas have confirmed it.

    `attached` is false where it is merely loaded. `unacknowledged`: gateways that have not heard of it yet.
    """

    adapter_id: str = ""
    adapter_row_id: int = 0
    adapter: str = ""
    instance_id: int = 0
    attached: bool = True
    pinned: bool = False
    state: str = ""
    ready: int = 0
    wanted: int = 0
    aliases: list[str] = []
    expires_at: float | None = None
    session_key: str | None = None
    error: Failure | None = None
    created_at: float | None = None
    unacknowledged: list[str] = []


class Canary(msgspec.Struct, kw_only=True):
    """A version that gets `share` (0..1) of the requests."""

    version: int
    share: float = 0.0


class Adapter(Record, kw_only=True):
    """`version` is live, `wanted_version` going live, `previous_version` what a rollback goes back to."""

    id: str
    row_id: int = 0
    name: str = ""
    label: str = ""
    aliases: list[str] = []
    base_model: str = ""
    region: str | None = None
    state: str = ""
    version: int | None = None
    digest: str | None = None
    rank: int | None = None
    alpha: float | None = None
    target_modules: list[str] = []
    size_bytes: int | None = None
    attachments: list[Attachment] = []
    warnings: list[str] = []
    created_at: float | None = None
    wanted_version: int | None = None
    previous_version: int | None = None
    canary: Canary | None = None


class AdapterVersion(Record, kw_only=True):
    """`state`: live, going_live, canary, failed, former or kept_back. On its way `ready` of `wanted` replicas have it.

    `error`: why it did not go live. `unacknowledged`: gateways that have not heard of it yet.
    """

    version: int
    digest: str | None = None
    live: bool = False
    rank: int | None = None
    alpha: float | None = None
    size_bytes: int | None = None
    source: dict[str, Any] = {}
    warnings: list[str] = []
    created_at: float | None = None
    state: str = ""
    ready: int | None = None
    wanted: int | None = None
    share: float | None = None
    error: Failure | None = None
    live_at: float | None = None
    unacknowledged: list[str] = []


class Replica(msgspec.Struct, kw_only=True):
    """One engine process. `state`: starting, pulling, loading, warming, ready, restarting, failed…"""

    id: str
    region: str = ""
    state: str = ""
    ready: bool = False
    detail: str = ""
    since: float | None = None
    restarts: int = 0
    error: Failure | None = None


class Lora(msgspec.Struct, kw_only=True):
    enabled: bool = False
    max_adapters: int = 0
    max_rank: int = 0
    max_active: int | None = None
    on_demand: bool = False


class Instance(Record, kw_only=True):
    """`model_string` is what to put in `model` to call the bare base on this instance."""

    id: int
    model: str = ""
    model_string: str = ""
    state: str = ""
    shared: bool = False
    replicas: list[Replica] = []
    lora: Lora = msgspec.field(default_factory=Lora)
    gpu_type: str | None = None
    gpu_count: int = 0
    engine: str | None = None
    regions: dict[str, int] = {}
    attachments: list[Attachment] = []
    termination_reason: str | None = None
    created_at: float | None = None


class EligibleInstance(Record, kw_only=True):
    """An instance and whether it can take the adapter; `reasons` where it cannot."""

    instance_id: int
    model: str = ""
    eligible: bool = False
    reasons: list[str] = []
    slots: int | None = None
    used: int | None = None
    free: int | None = None


class ReplicaExplained(msgspec.Struct, kw_only=True):
    """What one replica has of an adapter. `difference`, `noise`: from the base, and of the base's own (nats)."""

    replica: str
    region: str = ""
    state: str = ""
    serving: bool = False
    version: int | None = None
    since: float | None = None
    load_ms: float | None = None
    last_used: float | None = None
    difference: float | None = None
    noise: float | None = None
    retry_at: float | None = None
    why_not: str | None = None
    next: str | None = None


class PlaceExplained(msgspec.Struct, kw_only=True):
    """An instance where an adapter should be (`wish`: attached, pinned, loaded), may be (on_demand), or still is (none)."""

    instance_id: int
    model: str = ""
    instance_state: str = ""
    wish: str = ""
    state: str | None = None
    serving: int = 0
    wanted: int = 0
    since: float | None = None
    expires_at: float | None = None
    session_key: str | None = None
    replicas: list[ReplicaExplained] = []
    why_not: list[str] = []
    next: list[str] = []


class Explanation(Record, kw_only=True):
    """Where an adapter should be, where it is, why not, and what happens next."""

    adapter_id: str
    name: str = ""
    version: int | None = None
    wanted_version: int | None = None
    canary_version: int | None = None
    region: str | None = None
    served: bool = False
    summary: str = ""
    places: list[PlaceExplained] = []
    why_not: list[str] = []
    next: list[str] = []


class Job(Record, kw_only=True):
    """Long work. `state`: queued, running, succeeded, failed, cancelled. `progress`: 0 to 1."""

    id: str
    kind: str = ""
    state: str = ""
    progress: float | None = None
    message: str = ""
    subject: dict[str, Any] = {}
    error: Failure | None = None
    log: list[str] = []
    created_at: float | None = None
    updated_at: float | None = None

    @property
    def finished(self) -> bool:
        return self.state in ("succeeded", "failed", "cancelled")


class Imported(Record, kw_only=True):
    """The adapter that is being imported and the job that does it."""

    adapter: Adapter
    job: Job


class Backend(Record, kw_only=True):
    """An instance's slots and the adapters in them (dicts: adapter_id, name, state, pinned, last_used, …)."""

    instance_id: int
    model: str = ""
    slots: int = 0
    used: int = 0
    free: int = 0
    adapters: list[dict[str, Any]] = []


class Model(Record, kw_only=True):
    """A base model: the catalogue's, or (`registered`) the account's own."""

    name: str
    kind: str = "chat"
    source: str = ""
    lora: bool = False
    engine: str | None = None
    registered: bool = False
    region: str | None = None
    created_at: float | None = None


class Region(Record, kw_only=True):
    name: str
    gpus: dict[str, Any] = {}


class GpuType(Record, kw_only=True):
    name: str
    memory_gib: float | None = None
    rate_per_hour: str | float | None = None


class UsageEvent(Record, kw_only=True):
    """One request. `status` is its HTTP status, or `lost`; tokens that were not told are None."""

    id: int
    at: float
    request_id: str
    status: str
    key_id: str
    model: str
    base_model: str
    adapter_id: str | None = None
    adapter_version: int | None = None
    instance_id: int
    replica: str
    region: str
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    ttft_ms: float | None = None
    duration_ms: float
    cold: bool


class Key(Record, kw_only=True):
    """An API key. `key` is its text, given once, when it is made; it is left out of `repr`."""

    id: str
    name: str | None = None
    scopes: list[str] = []
    key: str | None = None
    created_at: float | None = None
    revoked_at: float | None = None
    expires_at: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    allow: list[str] = []
    spend_limit: int | None = None
    created_by: str | None = None
    unacknowledged: list[str] = []

    def __repr__(self) -> str:
        return f"Key(id={self.id!r}, name={self.name!r}, scopes={self.scopes!r})"


class Account(Record, kw_only=True):
    """It has `adapters` of the `max_adapters` that its tier may have."""

    id: str
    name: str = ""
    tier: str = ""
    created_at: float | None = None
    local_only: bool = False
    suspended_at: float | None = None
    adapters: int = 0
    max_adapters: int | None = None
    max_adapter_bytes: int | None = None
    unacknowledged: list[str] = []


class Gateway(Record, kw_only=True):
    """One that joined by a one-time token, or may. `token` is given once, and left out of `repr`."""

    id: str
    name: str = ""
    created_at: float | None = None
    expires_at: float | None = None
    joined_at: float | None = None
    revoked_at: float | None = None
    token: str | None = None

    def __repr__(self) -> str:
        return f"Gateway(id={self.id!r}, name={self.name!r})"


class Member(Record, kw_only=True):
    """A person in the account. `role`: owner or member."""

    id: str
    email: str = ""
    name: str = ""
    role: str = ""
    created_at: float | None = None
    last_login_at: float | None = None
    has_password: bool = False
    unacknowledged: list[str] = []


class Invite(Record, kw_only=True):
    """`token` is given once, when it is made; it is left out of `repr`. `member_id`: whose password it sets anew."""

    id: str
    email: str = ""
    role: str = ""
    created_by: str = ""
    created_at: float | None = None
    expires_at: float | None = None
    member_id: str | None = None
    token: str | None = None

    def __repr__(self) -> str:
        return f"Invite(id={self.id!r}, email={self.email!r}, role={self.role!r})"


class Event(Record, kw_only=True):
    """Something that happened (`kind`) to something (`subject`, e.g. `adapter:adp_…`)."""

    id: int | None = None
    at: float | None = None
    kind: str = ""
    subject: str = ""
    detail: dict[str, Any] = {}
    account: str | None = None


class AuditRecord(Record, kw_only=True):
    """Who (`by`: a key, or a member) asked for what. Without a `status` it was not answered, or is not yet."""

    id: int
    at: float | None = None
    account: str = ""
    by: str = ""
    action: str = ""
    subject: str = ""
    made: str | None = None
    status: int | None = None
    error: str | None = None
    request_id: str | None = None


class Transaction(Record, kw_only=True):
    """`amount` (1e-6 of the currency) moved; balances are the account's after it."""

    id: int
    at: float
    kind: str
    amount: int
    available_change: int = 0
    held_change: int = 0
    balance_after: int = 0
    held_after: int = 0
    subject: str = ""
    model: str | None = None
    note: str = ""


class Price(Record, kw_only=True):
    """In 1e-6 of the currency: `hourly` for one GPU, or `input` and `output` per 1,000,000 tokens."""

    id: int
    kind: str
    item: str
    region: str | None = None
    hourly: int | None = None
    input: int | None = None
    output: int | None = None
    effective_at: float = 0.0
    source: str = ""
    created_at: float | None = None


T = TypeVar("T", bound=Record)


def read(kind: type[T], body: Any) -> T:
    """`body` (parsed JSON) as a `kind`. Raises `PillionProtocolError` where it cannot be one."""
    try:
        record = msgspec.convert(body, kind, strict=False)
    except msgspec.ValidationError as error:
        raise PillionProtocolError(
            f"The server's answer is not the {kind.__name__.lower()} this client knows: {error}. "
            "Client and server may be of different versions."
        ) from error
    _keep(record, body)
    return record


def read_list(kind: type[T], body: Any) -> list[T]:
    """The elements of a list that is never paged. Raises `PillionProtocolError` where it is none."""
    if not isinstance(body, dict) or not isinstance(body.get("data"), list):
        raise PillionProtocolError(f"The server answered no list of {kind.__name__.lower()}s.")
    return [read(kind, element) for element in body["data"]]


def _keep(record: Record, body: Any) -> None:
    record.raw = body
    for name in record.__struct_fields__:
        value, told = getattr(record, name), body.get(name)
        if isinstance(value, Record):
            _keep(value, told)
        elif isinstance(value, list) and isinstance(told, list):
            for element, sent in zip(value, told, strict=True):
                if isinstance(element, Record):
                    _keep(element, sent)
