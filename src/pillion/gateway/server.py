"""The gateway's process: what it is put together from, how it listens, how it drains."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import resource
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import structlog
import uvloop

from pillion.core import COMPILED
from pillion.gateway.app import Gateway
from pillion.gateway.auth import Doorkeeper
from pillion.gateway.balance import Balance, RetryBudget
from pillion.gateway.body import BodyPolicy
from pillion.gateway.budgets import Budgets
from pillion.gateway.cold import AgentLoads, Cold
from pillion.gateway.config import GatewayConfig, Limits
from pillion.gateway.fair import Fair
from pillion.gateway.feed import ControlSource, SnapshotFeed
from pillion.gateway.http import RequestIds
from pillion.gateway.inbound import Inbound
from pillion.gateway.inference import Inference
from pillion.gateway.kept import KeptSnapshot, gateway_id
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.limits import KeyLimits
from pillion.gateway.metering import Meter, told_in_log
from pillion.gateway.metrics import Metrics
from pillion.gateway.onward import ToContainer, ToControl
from pillion.gateway.outbox import Outbox
from pillion.gateway.plans import Plans
from pillion.gateway.pool import Pool
from pillion.gateway.reports import ControlLedger, Reports, Sharing, UntoldError
from pillion.gateway.siblings import Siblings
from pillion.gateway.spool import own_and_orphans
from pillion.gateway.tracing import Tracing
from pillion.gateway.watch import HttpHealth, Watch

log = structlog.get_logger(__name__)

AGAIN_S = 1.0
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
    clock: Callable[[], float] = time.time,
) -> None:
    """Serves until `stop`, then takes no more connections, finishes what is in flight, and returns.

    After `limits.drain_s` streams are ended with an error event. `started` is told the address once it listens.
    `listener`: a socket that listens already, instead of the configured address. `clock`: seconds since the epoch.
    Raises `OSError` where it cannot listen or write to `state_dir`.
    """
    _raise_file_limit()
    # A request leaves no cycles behind, and a look at everything that a snapshot holds would stop all of them.
    gc.set_threshold(50_000, 20, 1000)
    loop = asyncio.get_running_loop()
    listener = listener or _listen(config.host, config.port)
    listener.setblocking(False)
    with contextlib.closing(listener):
        host, port = listener.getsockname()[:2]
        async with _gateway(config, clock) as (app, pool):
            server = await loop.create_server(lambda: Inbound(app, loop), sock=listener, backlog=2048)
            sweeping = _for_good(lambda: _sweep(app, config.limits))
            log.info("gateway listens", host=host, port=port, compiled=COMPILED is not None)
            started(host, port)
            await stop.wait()
            server.close()
            app.drain()
            await _drained(app, pool, config.limits)
            sweeping.cancel()
            await asyncio.wait({sweeping})
    log.info("gateway stopped")


async def _drained(app: Gateway, pool: Pool, limits: Limits) -> None:
    """Waits for what is in flight, and cuts off what is not done in time."""
    try:
        async with asyncio.timeout(limits.drain_s):
            await app.emptied()
        return
    except TimeoutError:
        log.warning("drain deadline: cutting off what is left")
    pool.close()
    try:
        async with asyncio.timeout(LAST_WORDS_S):
            await app.emptied()
    except TimeoutError:
        app.abort()


def _for_good(run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """A loop of the gateway. One that breaks is begun again: requests go on, and without it what they need would not."""

    async def again_and_again() -> None:
        while True:
            try:
                await run()
            except Exception:
                log.exception("a loop of the gateway broke", again_in_s=AGAIN_S)
            await asyncio.sleep(AGAIN_S)

    return asyncio.ensure_future(again_and_again())


async def _sweep(app: Gateway, limits: Limits) -> None:
    """Looks for what is too slow, often enough for the shortest limit."""
    loop = asyncio.get_running_loop()
    waits = (limits.header_timeout_s, limits.body_timeout_s, limits.linger_s, limits.stall_s)
    shortest = min(*waits, limits.keep_alive_s)
    while True:
        await asyncio.sleep(min(1.0, shortest / 4))
        app.sweep(loop.time())


@contextlib.asynccontextmanager
async def _gateway(config: GatewayConfig, clock: Callable[[], float]) -> AsyncIterator[tuple[Gateway, Pool]]:
    """All parts, wired; the snapshot feed runs inside the context."""
    name = await asyncio.to_thread(gateway_id, config.state_dir, lambda: f"gw_{secrets.token_hex(8)}")
    knowledge = Knowledge(clock, config.snapshot_max_age_s)
    outbox = Outbox()
    pool = Pool(config.limits.connect_timeout_s, outbox)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        source = ControlSource(session, config.internal_url, config.internal_token, name)
        feed = SnapshotFeed(source, KeptSnapshot(config.state_dir), knowledge, clock, random.random)
        await feed.start()
        ledger = ControlLedger(session, config.internal_url, config.internal_token)
        spool, orphans = await asyncio.to_thread(
            own_and_orphans, config.spool_dir or config.state_dir / "spool", config.limits.spool_bytes
        )
        reports = Reports(ledger, spool, orphans, clock, random.random)
        meter = Meter(spool, clock, reports.told, told_in_log if config.access_log else None)
        rates = KeyLimits(clock())
        budgets = Budgets(ledger, spool.id, secrets.token_hex(8), clock)
        sharing = Sharing(ledger, rates, name, clock)
        tasks = [_for_good(task.run) for task in (feed, reports, sharing, budgets)]
        metrics = Metrics(knowledge, lambda: reports.behind, lambda: sharing.open)
        fair = Fair(config.tiers, config.turns, clock, metrics.held_back)
        metrics.waiting = lambda: fair.waiting
        metrics.usage_damaged = lambda: reports.damaged
        metrics.usage_failed = lambda: meter.failed
        if config.metrics_dir is not None:
            siblings = Siblings(config.metrics_dir, config.state_dir.name, clock)
            metrics.page = siblings.page
            tasks.append(_for_good(lambda: siblings.run(metrics.own)))
        cold = Cold(AgentLoads(session), knowledge, clock, metrics.cold_load, config.limits.cold_wait_s)
        try:
            app = _app(config, knowledge, pool, outbox, metrics, meter, rates, budgets, cold, fair, clock)
            tasks.append(_for_good(_watch(app.inference, session, config.limits).run))
            yield app, pool
        finally:
            pool.close()
            await cold.close()
            await meter.settled()
            with contextlib.suppress(TimeoutError, UntoldError, OSError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await reports.flush()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            spool.close()


def _watch(inference: Inference, session: aiohttp.ClientSession, limits: Limits) -> Watch:
    return Watch(
        inference.waiting,
        HttpHealth(session, limits.probe_s),
        inference.balance,
        time.monotonic,
        inference.metrics.failed,
        limits.silent_s,
        limits.probe_s,
    )


def _app(
    config: GatewayConfig,
    knowledge: Knowledge,
    pool: Pool,
    outbox: Outbox,
    metrics: Metrics,
    meter: Meter,
    rates: KeyLimits,
    budgets: Budgets,
    cold: Cold,
    fair: Fair,
    clock: Callable[[], float],
) -> Gateway:
    balance = Balance(time.monotonic, random.random)
    door = Doorkeeper(clock, config.trusted_proxies, config.metrics_from)
    new_id = RequestIds(secrets.token_hex(8))
    return Gateway(
        knowledge=knowledge,
        door=door,
        inference=Inference(
            knowledge=knowledge,
            pool=pool,
            plans=Plans(knowledge, pool, clock, config.limits.quarantine_s),
            cold=cold,
            door=door,
            balance=balance,
            budget=RetryBudget(),
            policy=BodyPolicy(config.media_urls, config.allowed_extras),
            limits=config.limits,
            metrics=metrics,
            meter=meter,
            rates=rates,
            budgets=budgets,
            fair=fair,
            clock=clock,
            new_id=new_id,
            tracing=Tracing(config.tracer) if config.tracer is not None else None,
            random=random.random,
        ),
        control=ToControl(pool, config.control_url, door),
        container=ToContainer(knowledge, door, pool, balance, metrics),
        pool=pool,
        outbox=outbox,
        metrics=metrics,
        limits=config.limits,
        clock=clock,
        timer=time.perf_counter,
        new_id=new_id,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


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
