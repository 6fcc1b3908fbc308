"""One replica's directory on this machine, and the agent process that may serve it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import aiohttp
import msgspec
import psutil
import structlog

from pillion.core.errors import PillionError
from pillion.core.replica import AgentRecord, Replica, ReplicaSpec

POLL_S = 0.05
APPEAR_S = 15.0
ANSWER_GRACE_S = 45.0
END_GRACE_S = 45.0
_SAME_S = 2.0

log = structlog.get_logger(__name__)


class ReplicaStuckError(PillionError):
    """A replica does not end. It is left as it is, and can be tried again."""

    code = "replica_stuck"


class ReplicaDirectory:
    """`path` has a `spec.json`. `command` starts an agent, `--replica-dir` and `--data-dir` are added to it."""

    def __init__(self, path: Path, spec: ReplicaSpec, command: Sequence[str]) -> None:
        self.path = path
        self.spec = spec
        self.created = (path / "spec.json").stat().st_mtime
        self._command = [*command, "--replica-dir", str(path), "--data-dir", str(path.parent.parent)]
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def ending(self) -> bool:
        return (self.path / "ending").exists()

    def mark_ending(self) -> None:
        """From now on nothing is started here, whoever looks."""
        (self.path / "ending").touch()

    def alive(self) -> bool:
        """Whether an agent serves it: it holds the lock, or is our child and about to take it.

        The kernel lets go of a lock with its holder, so no process of the same number can pass for it.
        """
        child = self._child is not None and self._child.poll() is None
        return child or self._locked()

    def record(self) -> AgentRecord | None:
        try:
            return msgspec.json.decode((self.path / "agent.json").read_bytes(), type=AgentRecord)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def replica(self) -> Replica:
        """What there is to see of it now."""
        alive, record = self.alive(), self.record()
        group = self.spec.group
        return Replica(
            id=self.spec.id,
            instance=group.instance,
            region=group.region,
            alive=alive,
            agent_url=record.url if record and self._locked() else None,  # not what a dead one left
            agent_token=self.spec.agent_token,
            infer_key=self.spec.infer_key,
            started_at=record.started_at if record else self.created,
            generation=group.generation,
            exit_reason=None if alive else self._last_words(),
            load_key=self.spec.load_key,
        )

    def start(self) -> None:
        """Starts an agent, which outlives this process. One that finds another there leaves at once."""
        with (self.path / "agent.log").open("ab") as output:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                cwd=self.path,
                start_new_session=True,
            )
        log.info("agent_started", replica=self.spec.id, pid=self._child.pid)

    async def end(self, drain_s: float) -> None:
        """Drains, ends engine and agent. Raises `ReplicaStuckError`. Takes up where a call before it was cut off."""
        self.mark_ending()
        if self.alive() and not await self._stop(drain_s):
            self._kill()
            await self._until(lambda: not self.alive(), END_GRACE_S)
        if (self.path / "engine.json").exists():
            self.start()  # its engine lived on without it: an agent that finds it is ending ends that
            await self._until(lambda: not self.alive(), END_GRACE_S)
        if self.alive() or (self.path / "engine.json").exists():
            raise ReplicaStuckError(f"replica {self.spec.id} does not end; see {self.path / 'agent.log'}")

    async def logs(self, tail: int, follow: bool) -> AsyncIterator[str]:
        """Lines of the engine's log: from its agent, or from the file where that is dead."""
        record = self.record()
        if record is None or not self.alive():
            for line in await asyncio.to_thread(last_lines, self.path / "engine.log", tail):
                yield line
            return
        query = {"tail": str(tail), "follow": str(follow).lower()}
        async with aiohttp.ClientSession(headers=self._authorization()) as http:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
            with contextlib.suppress(aiohttp.ClientPayloadError):  # it ended while we followed
                async with http.get(f"{record.url}/v1/logs", params=query, timeout=timeout) as answer:
                    async for raw in answer.content:
                        yield raw.decode(errors="replace").rstrip("\n")

    async def _stop(self, drain_s: float) -> bool:
        await self._until(lambda: self.record() is not None or not self.alive(), APPEAR_S)
        record = self.record()
        if record is None:
            return not self.alive()
        timeout = aiohttp.ClientTimeout(total=drain_s + ANSWER_GRACE_S)
        try:
            async with (
                aiohttp.ClientSession(headers=self._authorization(), timeout=timeout) as http,
                http.post(f"{record.url}/v1/stop", params={"drain_s": f"{drain_s:g}"}) as answer,
            ):
                if answer.status != 200:
                    log.error("stop_refused", replica=self.spec.id, status=answer.status)
                    return False
        except (aiohttp.ClientError, TimeoutError) as error:
            log.error("stop_unanswered", replica=self.spec.id, error=str(error) or type(error).__name__)
        return await self._until(lambda: not self.alive(), APPEAR_S)

    def _kill(self) -> None:
        """Only the very process that wrote the record: number and start must both be its own."""
        record = self.record()
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
        elif record is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(record.pid)
                if abs(process.create_time() - record.created) < _SAME_S:
                    process.kill()

    async def _until(self, true: Callable[[], bool], timeout_s: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not true():
            if loop.time() > deadline:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def _locked(self) -> bool:
        try:
            with (self.path / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def _authorization(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.spec.agent_token}"}

    def _last_words(self) -> str:
        lines = last_lines(self.path / "agent.log", 1)
        return lines[0][-300:] if lines else "it was never seen alive"


def read(path: Path, command: Sequence[str]) -> ReplicaDirectory | None:
    """The replica in a directory; None where there is none, or it is going this very moment."""
    try:
        spec = msgspec.json.decode((path / "spec.json").read_bytes(), type=ReplicaSpec)
        return ReplicaDirectory(path, spec, command)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.MsgspecError as error:
        log.error("spec_unreadable", path=str(path), error=str(error))
        return None


def create(parent: Path, spec: ReplicaSpec) -> Path:
    """A replica's directory, there as a whole or not at all. Only its owner may look into it."""
    fresh = parent / f".new-{spec.id}"
    fresh.mkdir(mode=0o700, parents=True)
    descriptor = os.open(fresh / "spec.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(spec))
        file.flush()
        os.fsync(file.fileno())
    return fresh.rename(parent / spec.id)


def remove(path: Path) -> None:
    """Out of sight first, so that no half of a replica is ever seen."""
    gone = path.rename(path.with_name(f".gone-{path.name}"))
    shutil.rmtree(gone, ignore_errors=True)  # whoever scans next removes what is left


def last_lines(path: Path, lines: int, most: int = 1 << 20) -> list[str]:
    """Of the last `most` bytes."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - most))
            return list(deque(file.read().decode(errors="replace").splitlines(), maxlen=max(0, lines)))
    except FileNotFoundError:
        return []


def _environment() -> dict[str, str]:
    """Without the server's own settings, some of which are secrets an agent has no need of."""
    kept = ("PILLION_ENGINES_",)
    return {k: v for k, v in os.environ.items() if not k.startswith("PILLION_") or k.startswith(kept)}
