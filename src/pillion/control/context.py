"""What the use cases work with: the ports and settings of one control process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.fernet import Fernet

from pillion.artifacts.store import ArtifactStore
from pillion.control.agents import Agents
from pillion.control.changes import Changes
from pillion.control.login_limits import LoginLimits
from pillion.control.metrics import Counts
from pillion.control.passwords import Passwords
from pillion.control.shares import LimitShares
from pillion.control.snapshots import Gateways, Publisher
from pillion.control.upload_limits import UploadLimits
from pillion.core.catalogue import Catalogue
from pillion.core.tiers import CAPS, Caps, Tier
from pillion.fleet.provisioner import Provisioner
from pillion.store.database import Database
from pillion.store.rows import Job

if TYPE_CHECKING:
    from pillion.control.controller import Controller
    from pillion.control.oidc import Provider


@dataclass(frozen=True)
class Settings:
    """`models_root`: accounts' own `path:` models lie under `<models_root>/<account id>`. `billing`: it is on."""

    max_rank: int
    drain_s: float
    models_root: Path
    work_dir: Path
    caps: Mapping[Tier, Caps] = field(default_factory=lambda: CAPS)
    public_url: str = ""
    session_s: float = 86400.0
    billing: bool = False
    flip_drain_s: float = 300.0


@dataclass
class Control:
    """`choice` picks one character from a secure source; `clock` is seconds since the epoch.

    `changes` is notified after every committed change of a wish. `jobs_queued` after
    every new job. `job_ends`: by kind of job, what is to be done when
    one did not succeed.
    """

    db: Database
    artifacts: ArtifactStore
    catalogue: Catalogue
    settings: Settings
    clock: Callable[[], float]
    choice: Callable[[str], str]
    pepper: bytes
    vault: Fernet
    changes: Changes
    agents: Agents
    gateways: Gateways
    publisher: Publisher
    provisioners: Mapping[str, Provisioner]
    passwords: Passwords = field(default_factory=Passwords)
    provider: Provider | None = None
    counts: Counts = field(default_factory=Counts)
    jobs_queued: Changes = field(default_factory=Changes)
    job_ends: dict[str, Callable[[Control, Job], Awaitable[None]]] = field(default_factory=dict)
    controller: Controller = field(init=False)
    shares: LimitShares = field(init=False)
    login_limits: LoginLimits = field(init=False)
    uploads: UploadLimits = field(default_factory=UploadLimits)

    def __post_init__(self) -> None:
        self.shares = LimitShares(self.clock)
        self.login_limits = LoginLimits(self.clock)
