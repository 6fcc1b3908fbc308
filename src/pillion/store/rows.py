"""What comes out of the database: one frozen struct per table, its fields the table's columns.

Times are seconds since the epoch. `account_id` None means the operator's own.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pillion.core.money import Book, Kind, Price
from pillion.core.permissions import Role
from pillion.core.tiers import Tier

AdapterState = Literal["registered", "importing", "failed"]
InstanceState = Literal["pending", "starting", "running", "degraded", "stopping", "stopped", "failed"]
Hold = Literal["attached", "loaded"]
AttachmentState = Literal["attaching", "ready", "failed", "registered", "detaching"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Account(msgspec.Struct, frozen=True):
    id: str
    name: str
    tier: Tier
    local_only: bool
    created_at: float
    suspended_at: float | None = None
    deleted_at: float | None = None


class ApiKey(msgspec.Struct, frozen=True, gc=False):
    """`allow`: CIDRs it may be used from; None: anywhere. `spend_limit`: micro-units per calendar month (UTC).

    `created_by`: the member who made it, where one did.
    """

    id: str
    account_id: str
    lookup: str
    digest: str
    name: str
    scopes: list[str]
    created_at: float
    revoked_at: float | None
    expires_at: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    allow: list[str] | None = None
    spend_limit: int | None = None
    created_by: str | None = None


class Member(msgspec.Struct, frozen=True):
    """A person in an account. `password` is argon2's hash; `subject` who they are to the identity provider."""

    id: str
    account_id: str
    email: str
    name: str
    role: Role
    password: str | None
    subject: str | None
    created_at: float
    last_login_at: float | None


class JoinedGateway(msgspec.Struct, frozen=True):
    """`token`, good once and until `expires_at`, and `credential` are digests."""

    id: str
    name: str
    token: str
    created_by: str
    created_at: float
    expires_at: float
    credential: str | None = None
    joined_at: float | None = None
    revoked_at: float | None = None


class Invite(msgspec.Struct, frozen=True):
    """`digest` of its token. `member_id`: whose password it sets anew, where it is not for somebody new."""

    id: str
    account_id: str
    email: str
    role: Role
    digest: str
    member_id: str | None
    created_by: str
    created_at: float
    expires_at: float
    accepted_at: float | None


class Login(msgspec.Struct, frozen=True):
    """A browser's session: of a member, or of an API key. `digest` of what its cookie holds."""

    digest: str
    account_id: str
    member_id: str | None
    key_id: str | None
    created_at: float
    expires_at: float


class Caller(msgspec.Struct, frozen=True):
    """A key, and what else says whether it is good: is its account suspended, which role has the member who made it."""

    key: ApiKey
    suspended: bool
    role: Role | None


class LoggedIn(msgspec.Struct, frozen=True):
    """Who a browser's cookie stands for: a member, or a key."""

    login: Login
    suspended: bool
    member: Member | None
    key: Caller | None


class UsageEvent(msgspec.Struct, frozen=True):
    """One request, as its gateway told it. Tokens that no engine told are None."""

    id: int
    account_id: str
    spool: str
    seq: int
    at: float
    key_id: str
    adapter_id: str | None
    adapter_version: int | None
    model: str
    base_model: str
    instance_id: int
    replica: str
    region: str
    request_id: str
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    status: str
    ttft_ms: float | None
    duration_ms: float
    cold: bool


class UsageSum(msgspec.Struct, frozen=True):
    """What a group of requests used. `group` is empty for all of them. `cost`: in 1e-9 of the currency."""

    group: str
    requests: int
    errors: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: int = 0


class RegisteredModel(msgspec.Struct, frozen=True):
    id: int
    account_id: str
    name: str
    source: str
    revision: str | None
    kind: str
    lora: bool
    region: str | None
    image: str | None
    created_at: float


class Adapter(msgspec.Struct, frozen=True, gc=False):
    """`wanted_version` is to go live, in line since `wanted_at`; `previous_version` was live before.

    `canary_version` gets `canary_share` (0..1) of the requests. `ended_at`: when its time to live was over, or will be
    where no attachment is left to say so; from then on it is not served until it is loaded anew. `refused_name`: the
    engine name of the version that is in quarantine until `refused_until`.
    """

    row_id: int
    id: str
    account_id: str
    name: str
    label: str
    base_model: str
    region: str | None
    state: AdapterState
    live_version: int | None
    created_at: float
    wanted_version: int | None = None
    wanted_at: float | None = None
    previous_version: int | None = None
    canary_version: int | None = None
    canary_share: float | None = None
    ended_at: float | None = None
    refused_name: str | None = None
    refused_until: float | None = None


class AdapterVersion(msgspec.Struct, frozen=True):
    """Its bytes never change. `source` says where they came from, e.g. `{"repo": …, "commit": …}`.

    `live_at`: when it last went live. The error: why it did not, when that was last tried.
    """

    adapter_row_id: int
    account_id: str
    version: int
    digest: str
    rank: int
    alpha: float
    target_modules: list[str]
    size_bytes: int
    warnings: list[str]
    source: dict[str, Any]
    created_at: float
    live_at: float | None = None
    error_code: str | None = None
    error_message: str | None = None


class Instance(msgspec.Struct, frozen=True):
    """`spec` is control's: replicas per region, lora, engine, GPU…"""

    id: int
    account_id: str | None
    model: str
    spec: dict[str, Any]
    wanted: Literal["running", "stopped"]
    state: InstanceState
    termination_reason: str | None
    created_at: float
    stopped_at: float | None
    generation: int


class Attachment(msgspec.Struct, frozen=True, gc=False):
    """The wish that an adapter be served by an instance; `ready` of `wanted` replicas have confirmed it.

    `replaces`: the instance that lets the adapter go once this one serves it.
    """

    id: int
    account_id: str
    adapter_row_id: int
    instance_id: int
    hold: Hold
    pinned: bool
    expires_at: float | None
    session_key: str | None
    state: AttachmentState
    ready: int
    wanted: int
    error_code: str | None
    error_message: str | None
    created_at: float
    drain_deadline_s: float
    replaces: int | None = None


class Job(msgspec.Struct, frozen=True):
    """`progress` 0..1. `holder` is the worker that runs it."""

    id: str
    account_id: str
    kind: str
    subject: dict[str, Any]
    state: JobState
    progress: float
    message: str
    error: dict[str, Any] | None
    created_at: float
    updated_at: float
    holder: str | None


class LogLine(msgspec.Struct, frozen=True):
    job_id: str
    account_id: str
    seq: int
    at: float
    line: str


class Event(msgspec.Struct, frozen=True):
    """What was done, to what (`subject`, e.g. `adapter:adp_…`), by whom (in `detail`)."""

    id: int
    account_id: str | None
    at: float
    kind: str
    subject: str
    detail: dict[str, Any]


class AuditRecord(msgspec.Struct, frozen=True):
    """Who (`key_id`: a key, or a member) asked for what. `subject`: the path; `made`: the id of what it made.

    `status`, `error`: the answer's. Without a status it was not answered: it is under way, or its control died.
    """

    id: int
    account_id: str
    at: float
    key_id: str
    action: str
    subject: str
    request_id: str | None
    made: str | None
    status: int | None
    error: str | None


class Lease(msgspec.Struct, frozen=True):
    """`token` grows with every holder: the fence for writes made under the lease."""

    name: str
    holder: str
    token: int
    expires_at: float


class VersionBytes(msgspec.Struct, frozen=True, gc=False):
    """What an engine needs to know of a version."""

    version: int
    digest: str
    rank: int
    size_bytes: int


class RoutedAdapter(msgspec.Struct, frozen=True, gc=False):
    """An adapter as routing needs it. `labels`: the present one first, then former ones, the newest first.

    `wanted` is to go live, `canary` gets a share.
    """

    adapter: Adapter
    labels: tuple[str, ...]
    live: VersionBytes | None
    wanted: VersionBytes | None = None
    canary: VersionBytes | None = None


class SnapshotRows(msgspec.Struct, frozen=True):
    """One consistent read of what is wanted: keys not revoked, all attachments, instances that run or still end.

    `suspended`: accounts. `tiers`: of accounts that are of another than `shared`.
    """

    keys: list[ApiKey]
    models: list[RegisteredModel]
    adapters: list[RoutedAdapter]
    attachments: list[Attachment]
    instances: list[Instance]
    suspended: frozenset[str] = frozenset()
    prices: list[Price] = []
    tiers: dict[str, Tier] = {}


class LedgerEntry(msgspec.Struct, frozen=True):
    """`amount` moved from `source` to `target` (`core.money.Book`). Balances are the account's after it."""

    id: int
    account_id: str
    key: str
    kind: Kind
    source: Book
    target: Book
    amount: int
    at: float
    hour: int
    subject: str
    model: str
    detail: dict[str, Any]
    available_after: int
    held_after: int
