"""What a gateway is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pillion.core.tiers import CAPS, Caps, Tier, Turns
from pillion.core.usage import QUARANTINE_S

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


@dataclass(frozen=True)
class Limits:
    """Bytes and seconds that one client may take. An inference answer as a whole takes as long as it takes.

    `linger_s`: how long the rest of a body is still read, and thrown away, after its request was refused: a
    connection closed at once would often take the refusal with it. `stall_s`: how long a client may take nothing of what
    it is sent. `quarantine_s`: how long an adapter is refused
    after two replicas died holding a request for it. `spool_bytes`: how much usage is kept while control is away;
    beyond it requests are refused. `cold_wait_s`: how long a request waits for an adapter to be loaded. `silent_s`: after
    so long without a byte for a request its engine is asked for its health, `probe_s`: and left if it says nothing for that.
    """

    max_body: int = 32 * 2**20
    max_answer: int = 256 * 2**20
    max_header_bytes: int = 64 * 2**10
    header_timeout_s: float = 15.0
    body_timeout_s: float = 120.0
    linger_s: float = 30.0
    stall_s: float = 120.0
    keep_alive_s: int = 75
    connect_timeout_s: float = 3.0
    drain_s: float = 30.0
    quarantine_s: float = QUARANTINE_S
    spool_bytes: int = 2**30
    cold_wait_s: float = 10.0
    silent_s: float = 1.0
    probe_s: float = 2.0


@dataclass(frozen=True)
class GatewayConfig:
    """`control_url` is control's public API, `internal_url` its internal listener, which gives the snapshot.

    `spool_dir`: where usage waits for control, shared by all workers of a gateway; `spool` in `state_dir` if not given.
    `metrics_dir`: where workers of one gateway leave their metrics for each other; None where there is one process.
    `trusted_proxies`: CIDRs of proxies in front, whose `x-forwarded-for` is believed.
    `metrics_from`: CIDRs of those who may read `/metrics` without an operator's key: it tells of all accounts.
    `tracer`: of OpenTelemetry; None: no spans. `access_log`: a line for each request that an engine was asked for.
    `tiers`: what accounts of each may take of shared pools, `turns`: and together of one replica, both from this process.
    `snapshot_max_age_s`: how long after control's last word the kept snapshot still routes.
    `media_urls`: whether requests may name media by URL (engines would fetch them). `allowed_extras`: names of
    engine-specific request fields that are passed on top of those that `body` allows.
    """

    state_dir: Path
    control_url: str
    internal_url: str
    internal_token: str = field(repr=False)
    host: str = "127.0.0.1"
    port: int = 8080
    snapshot_max_age_s: float = 24 * 3600.0
    media_urls: bool = False
    allowed_extras: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    spool_dir: Path | None = None
    metrics_dir: Path | None = None
    trusted_proxies: tuple[str, ...] = ()
    metrics_from: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    tracer: Tracer | None = None
    tiers: Mapping[Tier, Caps] = field(default_factory=lambda: CAPS)
    turns: Turns = field(default_factory=Turns)
    access_log: bool = False
