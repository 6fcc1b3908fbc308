"""`pillion serve`: control and gateway as children of one small process that restarts them and holds their sockets.

Because the listening sockets belong to this process, a part that dies and comes back misses no connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from pillion.main.config import Config, ConfigError
from pillion.main.lifetime import PARENT_FD, Stop

log = structlog.get_logger(__name__)

BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)
STEADY_S = 30.0
STOP_S = 60.0


@dataclass
class Part:
    """One child: its name, arguments, and the sockets it inherits."""

    name: str
    argv: Sequence[str]
    sockets: Sequence[socket.socket]
    process: asyncio.subprocess.Process | None = None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ConfigError` where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another with --port."
        ) from error
    bound.listen(2048)
    return bound


def address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(config: Config, config_path: Path | None, keep_engines: bool) -> int:
    """Run until SIGTERM or SIGINT; the exit status. Engines are stopped unless `keep_engines`."""
    stop = Stop()
    stop.listen()
    public = listen(config.server.host, config.server.port)
    api, internal = listen("127.0.0.1", 0), listen("127.0.0.1", 0)
    lifeline_read, lifeline_write = os.pipe()
    common = ["--data-dir", str(config.data_dir), *(["--config", str(config_path)] if config_path else [])]
    control = Part(
        "control",
        [
            *common,
            f"--api-fd={api.fileno()}",
            f"--internal-fd={internal.fileno()}",
            f"--public-url={config.server.public_url or address(public)}",
            *(["--keep-engines"] if keep_engines else []),
        ],
        [api, internal],
    )
    gateway = Part(
        "gateway",
        [
            *common,
            f"--fd={public.fileno()}",
            f"--control-url={address(api)}",
            f"--internal-url={address(internal)}",
        ],
        [public],
    )
    parts = [control, gateway]
    tasks = [asyncio.create_task(_keep_running(part, lifeline_read, stop.event)) for part in parts]
    try:
        await stop.event.wait()
        for part in reversed(parts):  # the gateway first: it drains while what it needs still runs
            await _end(part)
        await asyncio.gather(*tasks)
    finally:
        os.close(lifeline_write)
    return 0


async def _keep_running(part: Part, lifeline: int, stopping: asyncio.Event) -> None:
    failures = 0
    while not stopping.is_set():
        started = asyncio.get_running_loop().time()
        part.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "pillion",
            part.name,
            *part.argv,
            pass_fds=[lifeline, *(s.fileno() for s in part.sockets)],
            env={**os.environ, PARENT_FD: str(lifeline)},
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which then ends them in order
        )
        status = await part.process.wait()
        if stopping.is_set():
            return
        steady = asyncio.get_running_loop().time() - started > STEADY_S
        failures = 0 if steady else failures + 1
        pause = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
        log.error("part_died", part=part.name, status=status, restart_in_s=pause)
        try:
            async with asyncio.timeout(pause):
                await stopping.wait()
        except TimeoutError:
            continue


async def _end(part: Part) -> None:
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
