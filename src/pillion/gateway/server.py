"""The gateway's process: what it is put together from, how it listens, how it drains."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator

import aiohttp
import structlog
import uvicorn
import uvloop

from pillion.gateway.app import Gateway
from pillion.gateway.balance import Balance, RetryBudget
from pillion.gateway.body import BodyPolicy
from pillion.gateway.config import GatewayConfig
from pillion.gateway.feed import ControlSource, SnapshotFeed
from pillion.gateway.guard import guarded
from pillion.gateway.inference import Inference
from pillion.gateway.kept import KeptSnapshot, gateway_id
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.metrics import Metrics
from pillion.gateway.onward import ToContainer, ToControl
from pillion.gateway.relay import AiohttpRelay

log = structlog.get_logger(__name__)

# What is cut off at the end of a drain may still say so to its client.
LAST_WORDS_S = 3


def run(config: GatewayConfig) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Raises `OSError` where it cannot listen."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_signal(config))


async def serve(
    config: GatewayConfig,
    stop: asyncio.Event,
    started: Callable[[str, int], None] = lambda host, port: None,
    listener: socket.socket | None = None,
) -> None:
    """Serves until `stop`, then takes no more connections, finishes what is in flight, and returns.

    After `limits.drain_s` streams are ended with an error event. `started` is told the address once it listens.
    `listener`: a socket that listens already, instead of the configured address. Raises `OSError` where it cannot
    listen or write to `state_dir`.
    """
    _raise_file_limit()
    listener = listener or _listen(config.host, config.port)
    listener.setblocking(False)
    with contextlib.closing(listener):
        host, port = listener.getsockname()[:2]
        async with _gateway(config) as (app, relay):
            server = _Server(_uvicorn_config(app, config))
            serving = asyncio.ensure_future(server.serve(sockets=[listener]))
            log.info("gateway listens", host=host, port=port)
            started(host, port)
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            app.draining.set()
            server.should_exit = True
            await asyncio.wait({serving}, timeout=config.limits.drain_s)
            if not serving.done():
                log.warning("drain deadline: cutting off what is left")
                await relay.aclose()
            await serving
    log.info("gateway stopped")


@contextlib.asynccontextmanager
async def _gateway(config: GatewayConfig) -> AsyncIterator[tuple[Gateway, AiohttpRelay]]:
    """All parts, wired; the snapshot feed runs inside the context."""
    name = await asyncio.to_thread(gateway_id, config.state_dir, lambda: f"gw_{secrets.token_hex(8)}")
    knowledge = Knowledge(time.time, config.snapshot_max_age_s)
    relay = AiohttpRelay(config.limits.connect_timeout_s)
    async with contextlib.aclosing(relay), aiohttp.ClientSession() as session:
        source = ControlSource(session, config.internal_url, config.internal_token, name)
        feed = SnapshotFeed(source, KeptSnapshot(config.state_dir), knowledge, time.time, random.random)
        await feed.start()
        feeding = asyncio.ensure_future(feed.run())
        try:
            yield _app(config, knowledge, relay), relay
        finally:
            feeding.cancel()
            await asyncio.wait({feeding})


def _app(config: GatewayConfig, knowledge: Knowledge, relay: AiohttpRelay) -> Gateway:
    metrics = Metrics(knowledge)
    balance = Balance(time.monotonic)
    return Gateway(
        knowledge=knowledge,
        inference=Inference(
            knowledge=knowledge,
            relay=relay,
            balance=balance,
            budget=RetryBudget(),
            policy=BodyPolicy(config.media_urls, config.allowed_extras),
            limits=config.limits,
            metrics=metrics,
            clock=time.time,
            new_id=_request_id,
        ),
        control=ToControl(relay, config.control_url),
        container=ToContainer(knowledge, relay, balance, metrics),
        metrics=metrics,
        clock=time.time,
        timer=time.perf_counter,
        new_id=_request_id,
        draining=asyncio.Event(),
    )


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: whoever runs us decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: Gateway, config: GatewayConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=guarded(config.limits),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=config.limits.keep_alive_s,
        timeout_graceful_shutdown=round(config.limits.drain_s) + LAST_WORDS_S,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def _request_id() -> str:
    return f"req_{secrets.token_hex(12)}"


def _raise_file_limit() -> None:
    """A stream takes two files; the usual soft limit of 1,024 would cap them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _until_signal(config: GatewayConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(config, stop)
