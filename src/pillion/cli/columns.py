"""Which fields of each noun are shown, in lists and alone."""

from __future__ import annotations

from pillion.cli.output import Column, moment, money, second, size
from pillion.sdk.types import (
    Account,
    Adapter,
    AdapterVersion,
    Attachment,
    AuditRecord,
    EligibleInstance,
    Event,
    Failure,
    Gateway,
    GpuType,
    Instance,
    Invite,
    Job,
    Key,
    Member,
    Model,
    Price,
    Region,
    Replica,
    Transaction,
    UsageEvent,
)

ADAPTERS = [
    Column[Adapter]("id", lambda a: a.id),
    Column[Adapter]("name", lambda a: a.name),
    Column[Adapter]("call_it", lambda a: f"{a.label}:{a.row_id}"),
    Column[Adapter]("base", lambda a: a.base_model),
    Column[Adapter]("state", lambda a: a.state),
    Column[Adapter]("rank", lambda a: a.rank),
    Column[Adapter]("size", lambda a: a.size_bytes, size),
    Column[Adapter]("instances", lambda a: [x.instance_id for x in a.attachments]),
    Column[Adapter]("created", lambda a: a.created_at, moment),
]
ADAPTER = [
    Column[Adapter]("id", lambda a: a.id),
    Column[Adapter]("row_id", lambda a: a.row_id),
    Column[Adapter]("name", lambda a: a.name),
    Column[Adapter]("label", lambda a: a.label),
    Column[Adapter]("call_it", lambda a: [f"{a.label}:{a.row_id}", f"{a.base_model}:{a.name}"]),
    Column[Adapter]("base", lambda a: a.base_model),
    Column[Adapter]("region", lambda a: a.region),
    Column[Adapter]("state", lambda a: a.state),
    Column[Adapter]("version", lambda a: _version(a)),
    Column[Adapter]("digest", lambda a: a.digest),
    Column[Adapter]("rank", lambda a: a.rank),
    Column[Adapter]("alpha", lambda a: a.alpha),
    Column[Adapter]("modules", lambda a: a.target_modules),
    Column[Adapter]("size", lambda a: a.size_bytes, size),
    Column[Adapter]("served_by", lambda a: [f"{x.instance_id} ({_how(x)})" for x in a.attachments]),
    Column[Adapter]("warnings", lambda a: a.warnings),
    Column[Adapter]("created", lambda a: a.created_at, moment),
]
VERSIONS = [
    Column[AdapterVersion]("version", lambda v: v.version),
    Column[AdapterVersion]("live", lambda v: v.live),
    Column[AdapterVersion]("state", lambda v: _version_state(v)),
    Column[AdapterVersion]("digest", lambda v: v.digest, lambda digest: str(digest)[:12]),
    Column[AdapterVersion]("rank", lambda v: v.rank),
    Column[AdapterVersion]("alpha", lambda v: v.alpha),
    Column[AdapterVersion]("size", lambda v: v.size_bytes, size),
    Column[AdapterVersion]("created", lambda v: v.created_at, moment),
]
ATTACHMENTS = [
    Column[Attachment]("adapter", lambda a: a.adapter or a.adapter_id),
    Column[Attachment]("instance", lambda a: a.instance_id),
    Column[Attachment]("state", lambda a: a.state),
    Column[Attachment]("replicas", lambda a: f"{a.ready}/{a.wanted}"),
    Column[Attachment]("attached", lambda a: a.attached),
    Column[Attachment]("pinned", lambda a: a.pinned),
    Column[Attachment]("expires", lambda a: a.expires_at, moment),
    Column[Attachment]("call_it", lambda a: a.aliases),
    Column[Attachment]("error", lambda a: _why(a.error)),
]
ELIGIBLE = [
    Column[EligibleInstance]("instance", lambda e: e.instance_id),
    Column[EligibleInstance]("model", lambda e: e.model),
    Column[EligibleInstance]("eligible", lambda e: e.eligible),
    Column[EligibleInstance]("free", lambda e: None if e.free is None else f"{e.free}/{e.slots}"),
    Column[EligibleInstance]("why_not", lambda e: e.reasons),
]
AUDIT = [
    Column[AuditRecord]("at", lambda r: r.at, second),
    Column[AuditRecord]("by", lambda r: r.by),
    Column[AuditRecord]("action", lambda r: r.action),
    Column[AuditRecord]("subject", lambda r: r.subject),
    Column[AuditRecord]("made", lambda r: r.made),
    Column[AuditRecord]("outcome", lambda r: r.status and f"{r.status} {r.error or ''}".strip()),
    Column[AuditRecord]("request_id", lambda r: r.request_id),
]
EVENTS = [
    Column[Event]("at", lambda e: e.at, second),
    Column[Event]("kind", lambda e: e.kind),
    Column[Event]("subject", lambda e: e.subject),
    Column[Event]("detail", lambda e: [f"{name}={value}" for name, value in e.detail.items()]),
]
INSTANCES = [
    Column[Instance]("id", lambda i: i.id),
    Column[Instance]("model", lambda i: i.model),
    Column[Instance]("state", lambda i: i.state),
    Column[Instance]("replicas", lambda i: f"{sum(r.ready for r in i.replicas)}/{_wanted(i)}"),
    Column[Instance]("adapters", lambda i: _adapters(i)),
    Column[Instance]("engine", lambda i: i.engine),
    Column[Instance]("gpu", lambda i: f"{i.gpu_count}x{i.gpu_type}" if i.gpu_type else None),
    Column[Instance]("shared", lambda i: i.shared),
    Column[Instance]("created", lambda i: i.created_at, moment),
]
INSTANCE = [
    Column[Instance]("id", lambda i: i.id),
    Column[Instance]("model", lambda i: i.model),
    Column[Instance]("call_it", lambda i: i.model_string or f"{i.model}:{i.id}"),
    Column[Instance]("state", lambda i: i.state),
    Column[Instance]("why", lambda i: i.termination_reason),
    Column[Instance]("engine", lambda i: i.engine),
    Column[Instance]("gpu", lambda i: f"{i.gpu_count}x{i.gpu_type}" if i.gpu_type else None),
    Column[Instance]("regions", lambda i: [f"{region} ({n})" for region, n in i.regions.items()]),
    Column[Instance]("lora", lambda i: _lora(i)),
    Column[Instance](
        "adapters", lambda i: [f"{a.adapter or a.adapter_id} ({_how(a)})" for a in i.attachments]
    ),
    Column[Instance]("replicas", lambda i: [_replica(r) for r in i.replicas]),
    Column[Instance]("created", lambda i: i.created_at, moment),
]
JOBS = [
    Column[Job]("id", lambda j: j.id),
    Column[Job]("kind", lambda j: j.kind),
    Column[Job]("state", lambda j: j.state),
    Column[Job]("progress", lambda j: None if j.progress is None else f"{j.progress:.0%}"),
    Column[Job]("message", lambda j: j.message),
    Column[Job]("created", lambda j: j.created_at, moment),
]
JOB = [
    *JOBS,
    Column[Job]("updated", lambda j: j.updated_at, moment),
    Column[Job]("subject", lambda j: [f"{name}={value}" for name, value in j.subject.items()]),
    Column[Job]("error", lambda j: _why(j.error)),
]
MODELS = [
    Column[Model]("name", lambda m: m.name),
    Column[Model]("kind", lambda m: m.kind),
    Column[Model]("lora", lambda m: m.lora),
    Column[Model]("engine", lambda m: m.engine),
    Column[Model]("source", lambda m: m.source),
    Column[Model]("region", lambda m: m.region),
    Column[Model]("registered", lambda m: m.registered),
]
REGIONS = [
    Column[Region]("name", lambda r: r.name),
    Column[Region]("gpus", lambda r: [f"{count} x {kind}" for kind, count in r.gpus.items()]),
]
GPU_TYPES = [
    Column[GpuType]("name", lambda g: g.name),
    Column[GpuType]("memory_gib", lambda g: g.memory_gib),
    Column[GpuType]("rate_per_hour", lambda g: g.rate_per_hour),
]
KEYS = [
    Column[Key]("id", lambda k: k.id),
    Column[Key]("name", lambda k: k.name),
    Column[Key]("scopes", lambda k: k.scopes),
    Column[Key]("created", lambda k: k.created_at, moment),
    Column[Key]("revoked", lambda k: k.revoked_at, moment),
    Column[Key]("expires", lambda k: k.expires_at, moment),
    Column[Key]("limits", lambda k: _limits(k)),
    Column[Key]("by", lambda k: k.created_by),
]
ACCOUNTS = [
    Column[Account]("id", lambda a: a.id),
    Column[Account]("name", lambda a: a.name),
    Column[Account]("tier", lambda a: a.tier),
    Column[Account]("adapters", lambda a: f"{a.adapters}/{a.max_adapters}" if a.max_adapters else a.adapters),
    Column[Account]("suspended", lambda a: a.suspended_at, moment),
    Column[Account]("created", lambda a: a.created_at, moment),
]

TRANSACTIONS = [
    Column[Transaction]("at", lambda t: t.at, moment),
    Column[Transaction]("kind", lambda t: t.kind),
    Column[Transaction]("amount", lambda t: t.amount, money),
    Column[Transaction]("available", lambda t: t.available_change, money),
    Column[Transaction]("held", lambda t: t.held_change, money),
    Column[Transaction]("balance", lambda t: t.balance_after, money),
    Column[Transaction]("for", lambda t: t.subject),
    Column[Transaction]("note", lambda t: t.note),
]
USAGE = [
    Column[UsageEvent]("id", lambda u: u.id),
    Column[UsageEvent]("at", lambda u: u.at, moment),
    Column[UsageEvent]("model", lambda u: u.model),
    Column[UsageEvent]("adapter", lambda u: u.adapter_id),
    Column[UsageEvent]("version", lambda u: u.adapter_version),
    Column[UsageEvent]("key", lambda u: u.key_id),
    Column[UsageEvent]("status", lambda u: u.status),
    Column[UsageEvent]("in", lambda u: u.prompt_tokens),
    Column[UsageEvent]("out", lambda u: u.completion_tokens),
    Column[UsageEvent]("ms", lambda u: round(u.duration_ms)),
]
PRICES = [
    Column[Price]("kind", lambda p: p.kind),
    Column[Price]("item", lambda p: p.item),
    Column[Price]("region", lambda p: p.region),
    Column[Price]("hourly", lambda p: p.hourly, money),
    Column[Price]("input", lambda p: p.input, money),
    Column[Price]("output", lambda p: p.output, money),
    Column[Price]("effective", lambda p: p.effective_at, moment),
    Column[Price]("set_by", lambda p: p.source),
]
MEMBERS = [
    Column[Member]("id", lambda m: m.id),
    Column[Member]("email", lambda m: m.email),
    Column[Member]("name", lambda m: m.name),
    Column[Member]("role", lambda m: m.role),
    Column[Member]("created", lambda m: m.created_at, moment),
    Column[Member]("last_login", lambda m: m.last_login_at, moment),
]
GATEWAYS = [
    Column[Gateway]("id", lambda g: g.id),
    Column[Gateway]("name", lambda g: g.name),
    Column[Gateway]("joined", lambda g: g.joined_at, moment),
    Column[Gateway]("token until", lambda g: None if g.joined_at else g.expires_at, moment),
    Column[Gateway]("revoked", lambda g: g.revoked_at, moment),
]

INVITES = [
    Column[Invite]("id", lambda i: i.id),
    Column[Invite]("email", lambda i: i.email),
    Column[Invite]("role", lambda i: i.role),
    Column[Invite]("expires", lambda i: i.expires_at, moment),
]


def _limits(key: Key) -> list[str]:
    return [
        *([f"{key.requests_per_minute} requests/min"] if key.requests_per_minute is not None else []),
        *([f"{key.tokens_per_minute} tokens/min"] if key.tokens_per_minute is not None else []),
        *([f"{money(key.spend_limit)} a month"] if key.spend_limit is not None else []),
        *([f"from {', '.join(key.allow)}"] if key.allow else []),
    ]


def _version(adapter: Adapter) -> str | None:
    if adapter.version is None:
        return None
    beside = f", {adapter.wanted_version} going live" if adapter.wanted_version is not None else ""
    if adapter.canary is not None:
        beside += f", {adapter.canary.version} gets {adapter.canary.share:.0%}"
    return f"{adapter.version}{beside}"


def _version_state(version: AdapterVersion) -> str:
    words = version.state.replace("_", " ")
    if version.share is not None:
        words += f" {version.share:.0%}"
    if version.wanted is not None:
        words += f" {version.ready}/{version.wanted}"
    return f"{words}: {_why(version.error)}" if version.error else words


def _how(attachment: Attachment) -> str:
    counted = attachment.state != "ready" and attachment.wanted
    return f"{attachment.state} {attachment.ready}/{attachment.wanted}" if counted else attachment.state


def _why(error: Failure | None) -> str | None:
    return None if error is None else f"{error.message} ({error.code})"


def _wanted(instance: Instance) -> int:
    return sum(instance.regions.values()) or len(instance.replicas)


def _adapters(instance: Instance) -> str | None:
    return f"{len(instance.attachments)}/{instance.lora.max_adapters}" if instance.lora.enabled else None


def _lora(instance: Instance) -> str:
    lora = instance.lora
    if not lora.enabled:
        return "off"
    return f"{lora.max_adapters} slots, rank up to {lora.max_rank}" + (
        ", on demand" if lora.on_demand else ""
    )


def _replica(replica: Replica) -> str:
    words = f"{replica.id} {replica.state}"
    if replica.restarts:
        words += f", {replica.restarts} restarts"
    why = _why(replica.error) or replica.detail
    return f"{words} ({why})" if why else words
