"""`pillion serve`: control and the gateway's workers as children of one small process."""

from __future__ import annotations

from pathlib import Path

from pillion.main.config import Config
from pillion.main.files import alone
from pillion.main.gateway import workers
from pillion.main.lifetime import Stop
from pillion.main.supervise import Part, address, listen, listen_apart, supervise


async def serve(config: Config, config_path: Path | None, keep_engines: bool) -> int:
    """Run until SIGTERM or SIGINT; the exit status. Engines are stopped unless `keep_engines`."""
    with alone(config.data_dir / "serve.lock"):  # two would end each other's engines
        return await _serve(config, config_path, keep_engines)


async def _serve(config: Config, config_path: Path | None, keep_engines: bool) -> int:
    stop = Stop()
    stop.listen()
    public = listen_apart(config.server.host, config.server.port, config.server.workers)
    api, internal = listen("127.0.0.1", 0), listen("127.0.0.1", 0)
    control = Part(
        "control",
        [
            *config.arguments(config_path),
            f"--api-fd={api.fileno()}",
            f"--internal-fd={internal.fileno()}",
            f"--public-url={config.server.public_url or address(public[0])}",
            *(["--keep-engines"] if keep_engines else []),
        ],
        [api, internal],
        "control",
    )
    gateways = workers(config, config_path, public, address(api), address(internal))
    # The gateway ends first: it drains while what it needs still runs.
    return await supervise([[control], gateways], stop.event)
