"""The gateway process."""

from __future__ import annotations

import socket

from pillion.gateway import GatewayConfig, serve
from pillion.main.config import Config
from pillion.main.lifetime import Stop


async def gateway(
    config: Config, public: socket.socket, control_url: str, internal_url: str, internal_token: str
) -> int:
    """Run until told to stop, then drain; the exit status."""
    stop = Stop()
    stop.listen()
    await serve(
        GatewayConfig(
            state_dir=config.data_dir / "gateway",
            control_url=control_url,
            internal_url=internal_url,
            internal_token=internal_token,
            host=config.server.host,
            port=config.server.port,
            snapshot_max_age_s=config.server.snapshot_max_age_s,
        ),
        stop.event,
        listener=public,
    )
    return 0
