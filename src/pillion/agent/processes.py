"""The engine as a process: started so that it is never lost, found again, ended with all it started."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import psutil

from pillion.agent.home import EngineRecord, Home
from pillion.engines.driver import Launch

# Waits for a line before it becomes the engine. An agent that dies before it has written down whom it started
# closes the pipe, and nothing is started: there are no engines that nobody knows of.
_GATEKEEPER = 'read -r go && exec "$@" </dev/null'
_POLL_S = 0.05
_KILL_S = 10.0


class Process(Protocol):
    """An engine that was started. `exit_status` is known only of one that has ended, and not always then."""

    @property
    def record(self) -> EngineRecord: ...

    @property
    def exit_status(self) -> int | None: ...

    def alive(self) -> bool: ...

    async def end(self, grace_s: float) -> None:
        """Asks it to end, and after `grace_s` makes it; 0: without asking."""
        ...


class Processes(Protocol):
    """Where engines run: this module, or a test's own place."""

    def start(self, launch: Launch, home: Home, port: int, epoch: int) -> Process:
        """Starts one and writes down which it is, in this order or not at all. Raises `OSError`."""
        ...

    def adopt(self, home: Home) -> Process | None:
        """The one that an agent before this one left running."""
        ...


class EngineProcess:
    """A running engine: this agent's child, or one adopted from the agent before."""

    def __init__(self, record: EngineRecord, child: subprocess.Popen[bytes] | None = None) -> None:
        self._record = record
        self._child = child

    @property
    def record(self) -> EngineRecord:
        return self._record

    @property
    def exit_status(self) -> int | None:
        """Known only of a child that has ended."""
        return None if self._child is None else self._child.poll()

    def alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return identity(self._record.pid) == self._record.identity

    async def end(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL after `grace_s` or, if that is 0, at once, to the engine; then SIGKILL to what it started."""
        if self.alive() and grace_s:
            _signal(self._record.pid, signal.SIGTERM)
            await self._gone(grace_s)
        if self.alive():
            _signal(self._record.pid, signal.SIGKILL)
            await self._gone(_KILL_S)
        for process in _session(self._record):
            _signal(process, signal.SIGKILL)

    async def _gone(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self.alive() and loop.time() < deadline:  # noqa: ASYNC110 (not always our child: no event tells)
            await asyncio.sleep(_POLL_S)


def start(launch: Launch, home: Home, port: int, epoch: int) -> EngineProcess:
    """Starts an engine in a session of its own, its output appended to the log, and writes down which it is."""
    with home.engine_log.open("ab") as output:
        child = subprocess.Popen(
            ["/bin/sh", "-c", _GATEKEEPER, "pillion-engine", *launch.argv],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=launch.env,
            cwd=home.directory,
            start_new_session=True,
        )
    if child.stdin is None:
        raise RuntimeError("no pipe to the engine")
    try:
        record = EngineRecord(child.pid, identity(child.pid) or "", port, epoch)
        home.write("engine.json", record)
        child.stdin.write(b"go\n")
    finally:
        child.stdin.close()
    return EngineProcess(record, child)


def adopt(home: Home) -> EngineProcess | None:
    """The engine that an agent before this one left running. What is left of a dead one is ended."""
    record = home.read("engine.json", EngineRecord)
    if record is None:
        return None
    if identity(record.pid) == record.identity:
        return EngineProcess(record)
    for process in _session(record):
        _signal(process, signal.SIGKILL)
    return None


def identity(pid: int) -> str | None:
    """What tells a process from a later one of the same number; None where there is none, or a zombie.

    On Linux the boot and the clock tick it began at: no change of the wall clock can alter them.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
    except (FileNotFoundError, ProcessLookupError, IndexError):
        pass
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return None


def free_port(host: str) -> int:
    with socket.create_server((host, 0)) as bound:
        port: int = bound.getsockname()[1]
        return port


def _session(record: EngineRecord) -> Iterator[int]:
    """Processes of the dead engine's session. The kernel gives its number to nobody while one of them lives."""
    if psutil.pid_exists(record.pid) and identity(record.pid) is not None:
        return  # somebody else's by now, or still alive: nothing of it is ours to end here
    for pid in psutil.pids():
        try:
            if pid != record.pid and os.getsid(pid) == record.pid:
                yield pid
        except (ProcessLookupError, PermissionError):
            continue


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
