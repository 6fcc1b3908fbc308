"""A simulated engine behind its gate, on a port: as a process, or within a test."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn

from pillion.engines.plugin.pillion_engine.gate import Gate
from pillion.engines.sim.http import SimApp
from pillion.engines.sim.settings import SimConfig


@dataclass(frozen=True)
class Running:
    """A simulated engine that answers at `url`."""

    url: str
    app: SimApp


async def serve(config: SimConfig, host: str, port: int) -> None:
    """Serves until SIGTERM."""
    for line in ("Starting to load model", "Model loading took"):
        print(f"{line} {config.base}", flush=True)
        await asyncio.sleep(config.options.start_up_s / 2)
    server, _ = _server(config, host, port, _die)
    print("Application startup complete.", flush=True)
    await server.serve()


@asynccontextmanager
async def running(config: SimConfig, die: Callable[[], None] = lambda: None) -> AsyncIterator[Running]:
    """A simulated engine on a free port of loopback, in this event loop. Told to crash, it calls `die`."""
    bound = socket.create_server(("127.0.0.1", 0))
    server, app = _server(config, "127.0.0.1", 0, die)
    task = asyncio.create_task(server._serve(sockets=[bound]))  # `serve` would take this process's signals
    try:
        while not (server.started or task.done()):  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0)
        yield Running(f"http://127.0.0.1:{bound.getsockname()[1]}", app)
    finally:
        server.should_exit = server.force_exit = True
        await task
        bound.close()


def _server(
    config: SimConfig, host: str, port: int, die: Callable[[], None]
) -> tuple[uvicorn.Server, SimApp]:
    app = SimApp(config, lambda: uuid.uuid4().hex, die)
    gate = Gate(
        app,
        app.adapters,
        infer_key=config.infer_key,
        agent_key=config.agent_key,
        base_names=[config.base],
        slots=config.slots,
    )
    settings = uvicorn.Config(
        gate,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(settings), app


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
