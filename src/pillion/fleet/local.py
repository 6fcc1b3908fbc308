"""Replicas as processes of this machine. They outlive control, which finds them again by their directories."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path

import structlog

from pillion.core.errors import NotFoundError
from pillion.core.replica import CACHE_BYTES, GroupSpec, Replica, ReplicaSpec
from pillion.core.spans import TraceTo
from pillion.fleet.directory import ReplicaDirectory, create, last_lines, read, remove

DRAIN_S = 30.0
KEPT_LOGS = 50
KEPT_LINES = 5000
LEFTOVER_S = 60.0
AGENT = (sys.executable, "-m", "pillion", "agent")
_ID = re.compile(r"r\d+-[a-z0-9._-]+-[a-z0-9]{6}")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"

log = structlog.get_logger(__name__)


class LocalProvisioner:
    """The replicas of one region under `data_dir`: `<data_dir>/replicas/<id>`, one agent each.

    `argv_prefix` starts an agent. `artifacts_url` is the store they fetch from;
    their copies take `cache_bytes` at most. Ending a replica drains it for
    `drain_s` at most. `choice` picks from a secure source.
    """

    def __init__(
        self,
        data_dir: Path,
        region: str,
        artifacts_url: str,
        argv_prefix: Sequence[str] = AGENT,
        *,
        drain_s: float = DRAIN_S,
        cache_bytes: int = CACHE_BYTES,
        traces: TraceTo | None = None,
        choice: Callable[[str], str] = secrets.choice,
        token: Callable[[], str] = secrets.token_urlsafe,
    ) -> None:
        self._root = data_dir.absolute() / "replicas"
        self._kept = data_dir.absolute() / "logs"
        self._cache = data_dir.absolute() / "cache" / "adapters"
        self._region, self._artifacts, self._command = region, artifacts_url, tuple(argv_prefix)
        self._cache_bytes, self._traces = cache_bytes, traces
        self._drain_s, self._choice, self._token = drain_s, choice, token
        self._known: dict[str, ReplicaDirectory] = {}
        self._endings: dict[str, asyncio.Task[None]] = {}
        self._applying = asyncio.Lock()

    async def apply(self, group: GroupSpec) -> None:
        """Starts what is missing before it returns; what is extra ends in its own time."""
        if group.region != self._region:
            raise ValueError(f"region {group.region} is not {self._region}")
        async with self._applying:
            present = [found for found in await self._all() if found.spec.group.instance == group.instance]
            stay, leave = plan(present, group)
            for found in leave:
                self._end(found)
            for found in stay:
                if not found.alive():
                    found.start()
            for _ in range(group.replicas - len(stay)):
                self._create(group).start()

    async def delete(self, instance: int, region: str) -> None:
        """Returns when they are gone. Calls beside each other share the work."""
        if region != self._region:
            return
        mine = [found for found in await self._all() if found.spec.group.instance == instance]
        endings = [self._end(found) for found in mine]
        for ending in endings:
            await asyncio.shield(ending)

    async def observe(self) -> list[Replica]:
        found = await self._all()
        for replica in found:
            if replica.ending:  # begun by a control that is no more
                self._end(replica)
        return [replica.replica() for replica in found]

    async def logs(self, replica: str, tail: int, *, follow: bool = False) -> AsyncIterator[str]:
        """The last lines of its engine; of a replica that is gone, what was kept of them."""
        known = {found.spec.id: found for found in await self._all()}
        if replica in known:
            async for line in known[replica].logs(tail, follow):
                yield line
            return
        kept = self._kept / f"{replica}.log"
        if not _ID.fullmatch(replica) or not kept.exists():
            raise NotFoundError(f"there is no replica {replica[:80]!r} in {self._region}.")
        for line in await asyncio.to_thread(last_lines, kept, tail):
            yield line

    async def _all(self) -> list[ReplicaDirectory]:
        """Every replica of this region, the oldest first."""
        present = await asyncio.to_thread(_scan, self._root)
        for name in self._known.keys() - set(present):
            del self._known[name]
        for name in present:
            if name not in self._known:
                found = read(self._root / name, self._command)
                if found is not None:
                    self._known[name] = found
        mine = [found for found in self._known.values() if found.spec.group.region == self._region]
        return sorted(mine, key=lambda found: (found.created, found.spec.id))

    def _create(self, group: GroupSpec) -> ReplicaDirectory:
        suffix = "".join(self._choice(_ALPHABET) for _ in range(6))
        spec = ReplicaSpec(
            id=f"r{group.instance}-{group.region}-{suffix}",
            group=group,
            agent_token=self._token(),
            infer_key=self._token(),
            engine_key=self._token(),
            artifacts=self._artifacts,
            cache_dir=str(self._cache),
            load_key=self._token(),
            cache_bytes=self._cache_bytes,
            traces=self._traces,
        )
        made = ReplicaDirectory(create(self._root, spec), spec, self._command)
        self._known[spec.id] = made
        return made

    def _end(self, found: ReplicaDirectory) -> asyncio.Task[None]:
        task = self._endings.get(found.spec.id)
        if task is None or task.done():
            found.mark_ending()
            task = asyncio.create_task(self._end_and_remove(found))
            self._endings[found.spec.id] = task
            task.add_done_callback(lambda done: self._ended(found.spec.id, done))
        return task

    async def _end_and_remove(self, found: ReplicaDirectory) -> None:
        await found.end(self._drain_s)
        await asyncio.to_thread(self._keep_logs, found)
        await asyncio.to_thread(remove, found.path)
        log.info("replica_removed", replica=found.spec.id)

    def _ended(self, replica: str, task: asyncio.Task[None]) -> None:
        self._endings.pop(replica, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("replica_not_ended", replica=replica, error=str(task.exception()))

    def _keep_logs(self, found: ReplicaDirectory) -> None:
        self._kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = [
            line for name in ("agent.log", "engine.log") for line in last_lines(found.path / name, KEPT_LINES)
        ]
        (self._kept / f"{found.spec.id}.log").write_text("".join(f"{line}\n" for line in lines))
        kept = sorted(self._kept.glob("r*.log"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-KEPT_LOGS]:
            old.unlink(missing_ok=True)


def plan(
    present: Iterable[ReplicaDirectory], group: GroupSpec
) -> tuple[list[ReplicaDirectory], list[ReplicaDirectory]]:
    """Who stays and who leaves: another generation leaves, then those not alive, then the newest."""
    there = [found for found in present if not found.ending]
    same = [found for found in there if found.spec.group.generation == group.generation]
    ranked = sorted(same, key=lambda found: (not found.alive(), found.created))
    stay = ranked[: group.replicas]
    return stay, [found for found in there if found not in stay]


def _scan(root: Path) -> list[str]:
    """Names of replica directories. What a process that died left half made or half removed goes."""
    if not root.exists():
        return []
    found = []
    for path in root.iterdir():
        if not path.name.startswith("."):
            found.append(path.name)
        elif path.name.startswith(".gone-") or _is_old(path):
            shutil.rmtree(path, ignore_errors=True)
    return found


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > LEFTOVER_S
    except FileNotFoundError:
        return False
