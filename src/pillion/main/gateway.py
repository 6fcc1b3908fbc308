"""The gateway: one process, or several workers that share its address."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pillion.gateway import GatewayConfig, serve
from pillion.main.config import Config
from pillion.main.joining import credential
from pillion.main.lifetime import Stop
from pillion.main.supervise import Part, listen_apart, supervise
from pillion.main.tracing import trace_to, tracer_provider

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


async def gateway(
    config: Config,
    public: socket.socket,
    control_url: str,
    internal_url: str,
    worker: int = 0,
) -> int:
    """Run one worker until told to stop, then drain; the exit status.

    To control each worker is a gateway of its own. Usage that one left behind is told by whichever begins next.
    """
    stop = Stop()
    stop.listen()
    provider = tracer_provider(trace_to(config), "gateway")
    tracer = None if provider is None else provider.get_tracer("pillion.gateway")
    shown = await _unless(stop, credential(config, internal_url))
    if shown is None:
        return 0
    made = gateway_config(config, control_url, internal_url, shown, worker, tracer)
    await serve(made, stop.event, listener=public)
    if provider is not None:
        await asyncio.to_thread(provider.shutdown)
    return 0


async def _unless(stop: Stop, work: Coroutine[Any, Any, str]) -> str | None:
    """Its result; None where it was told to stop before."""
    task, told = asyncio.ensure_future(work), asyncio.ensure_future(stop.event.wait())
    await asyncio.wait([task, told], return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not task.done():
        task.cancel()
        return None
    return await task


def gateway_config(
    config: Config,
    control_url: str,
    internal_url: str,
    internal_token: str,
    worker: int = 0,
    tracer: Tracer | None = None,
) -> GatewayConfig:
    """What one worker is started with."""
    home = config.data_dir / "gateway"
    return GatewayConfig(
        state_dir=home / f"worker-{worker}",
        spool_dir=home / "spool",
        metrics_dir=home / "metrics" if config.server.workers > 1 else None,
        control_url=control_url,
        internal_url=internal_url,
        internal_token=internal_token,
        host=config.server.host,
        port=config.server.port,
        snapshot_max_age_s=config.server.snapshot_max_age_s,
        trusted_proxies=config.trusted_proxies,
        metrics_from=config.metrics_from,
        media_urls=config.limits.media_urls,
        allowed_extras=config.request_fields,
        access_log=config.server.access_log,
        tiers=config.tiers.caps,
        turns=config.turns,
        tracer=tracer,
    )


async def gateways(config: Config, config_path: Path | None, control_url: str, internal_url: str) -> int:
    """Run as many workers as are configured until told to stop; the exit status."""
    stop = Stop()
    stop.listen()
    public = listen_apart(config.server.host, config.server.port, config.server.workers)
    return await supervise([workers(config, config_path, public, control_url, internal_url)], stop.event)


def workers(
    config: Config,
    config_path: Path | None,
    public: Sequence[socket.socket],
    control_url: str,
    internal_url: str,
) -> list[Part]:
    """A part for each of the sockets."""
    return [
        Part(
            "gateway",
            [
                *config.arguments(config_path),
                f"--fd={bound.fileno()}",
                f"--worker={number}",
                f"--workers={len(public)}",
                f"--control-url={control_url}",
                f"--internal-url={internal_url}",
            ],
            [bound],
            f"gateway-{number}",
        )
        for number, bound in enumerate(public)
    ]
