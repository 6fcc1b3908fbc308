"""Child processes that are kept running, and the sockets that are held for them.

Because the listening sockets belong to the parent, a part that dies and comes back misses no connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from pillion.main.config import ConfigError
from pillion.main.lifetime import PARENT_FD

log = structlog.get_logger(__name__)

BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)
STEADY_S = 30.0
STOP_S = 60.0
BACKLOG = 2048
REFUSED = 2  # the status of a start that only a person can make succeed


@dataclass
class Part:
    """One child: the command it runs, its arguments, the sockets it inherits, and what it is called in the log."""

    command: str
    argv: Sequence[str]
    sockets: Sequence[socket.socket]
    name: str
    process: asyncio.subprocess.Process | None = None


async def supervise(stages: Sequence[Sequence[Part]], stop: asyncio.Event) -> int:
    """Runs all parts, and again those that die, until `stop`; then ends them, the last stage first. The exit status.

    Where a part's very first start is refused, which another would be too, that is the end of all.
    """
    lifeline_read, lifeline_write = os.pipe()
    tasks = [
        asyncio.create_task(_keep_running(part, lifeline_read, stop)) for stage in stages for part in stage
    ]
    try:
        await stop.wait()
        for stage in reversed(stages):
            await asyncio.gather(*(_end(part) for part in stage))
        return max(await asyncio.gather(*tasks))
    finally:
        os.close(lifeline_write)
        os.close(lifeline_read)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ConfigError` where the address cannot be had."""
    bound = _bound(host, port)
    bound.listen(BACKLOG)
    return bound


def listen_apart(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` listening sockets at one address, over which the kernel spreads connections. Raises `ConfigError`."""
    if count == 1:
        return [listen(host, port)]
    # Sockets that share an address let anyone of this user join them; this one finds who is there already.
    with _bound(host, port) as probe:
        port = probe.getsockname()[1]
    made = [_bound(host, port, shared=True) for _ in range(count)]
    for bound in made:
        bound.listen(BACKLOG)
    return made


def address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another with --port."
        ) from error
    return bound


async def _keep_running(part: Part, lifeline: int, stopping: asyncio.Event) -> int:
    """Its exit status where it was refused at the start, else 0."""
    failures, first = 0, True
    while not stopping.is_set():
        started = asyncio.get_running_loop().time()
        part.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "pillion",
            part.command,
            *part.argv,
            pass_fds=[lifeline, *(s.fileno() for s in part.sockets)],
            env={**os.environ, PARENT_FD: str(lifeline)},
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which then ends them in order
        )
        if stopping.is_set():  # told while it was being started: whoever ends the parts did not see this one
            await _end(part)
            return 0
        status = await part.process.wait()
        if stopping.is_set():
            return 0
        if first and status == REFUSED:
            stopping.set()
            return REFUSED
        first = False
        steady = asyncio.get_running_loop().time() - started > STEADY_S
        failures = 0 if steady else failures + 1
        pause = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
        log.error("part_died", part=part.name, status=status, restart_in_s=pause)
        try:
            async with asyncio.timeout(pause):
                await stopping.wait()
        except TimeoutError:
            continue
    return 0


async def _end(part: Part) -> None:
    """Its sockets are closed here too, so that who comes while it drains is refused, and not left waiting."""
    for bound in part.sockets:
        bound.close()
    process = part.process
    if process is None or process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        log.error("part_killed", part=part.name, after_s=STOP_S)
        process.kill()
        await process.wait()
