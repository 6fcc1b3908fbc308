"""Running one part: what each process is composed of. The only place that knows all rooms."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from pillion.core.errors import InvalidRequestError, PillionError, UnavailableError
from pillion.main import config as settings
from pillion.main.config import Config


@dataclass(frozen=True)
class ControlSockets:
    """Inherited descriptors where there is a parent that holds the sockets, else ports."""

    api_fd: int | None
    internal_fd: int | None
    api_port: int
    internal_port: int


@dataclass(frozen=True)
class GatewayLinks:
    """Where a gateway finds control: its API, and its internal listener."""

    control_url: str
    internal_url: str


def run_serve(path: Path | None, overrides: Mapping[str, Any], keep_engines: bool) -> int:
    from pillion.main.serve import serve

    return _run(path, overrides, lambda config: serve(config, path, keep_engines))


def run_control(
    path: Path | None, overrides: Mapping[str, Any], sockets: ControlSockets, keep_engines: bool
) -> int:
    from pillion.main.control import control
    from pillion.main.joining import local_credential

    def make(config: Config) -> Coroutine[Any, Any, int]:
        api = _socket(sockets.api_fd, "127.0.0.1", sockets.api_port)
        internal = _socket(sockets.internal_fd, "127.0.0.1", sockets.internal_port)
        return control(config, api, internal, local_credential(config), keep_engines)

    return _run(path, overrides, make)


def run_gateway(
    path: Path | None, overrides: Mapping[str, Any], links: GatewayLinks, fd: int | None, worker: int
) -> int:
    from pillion.main.gateway import gateway, gateways

    def make(config: Config) -> Coroutine[Any, Any, int]:
        if fd is None and config.server.workers > 1:
            return gateways(config, path, links.control_url, links.internal_url)
        public = _socket(fd, config.server.host, config.server.port)
        return gateway(config, public, links.control_url, links.internal_url, worker)

    return _run(path, overrides, make)


def run_agent(replica_dir: Path) -> int:
    from pillion import agent
    from pillion.main.tracing import spans_to

    _log()
    return agent.run(replica_dir, spans_to)


def _socket(fd: int | None, host: str, port: int) -> socket.socket:
    from pillion.main.supervise import listen

    return socket.socket(fileno=fd) if fd is not None else listen(host, port)


def _run(
    path: Path | None, overrides: Mapping[str, Any], make: Callable[[Config], Coroutine[Any, Any, int]]
) -> int:
    """Configure, run, and turn what a person can mend into one clear line."""
    import uvloop

    from pillion.main.supervise import REFUSED

    _log()
    try:
        config = settings.load(path, overrides, os.environ)
        _make(config.data_dir)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(make(config))
    except PillionError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1 if isinstance(error, UnavailableError) else REFUSED


def _make(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequestError(
            f"The data directory {data_dir} cannot be made ({error.strerror}). Choose another with --data-dir."
        ) from error


def _log() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
