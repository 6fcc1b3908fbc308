"""The control process: database, provisioners, controller, job runner, and the two listeners."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import socket
import time
from contextlib import AsyncExitStack

import structlog
import uvicorn
from cryptography.fernet import Fernet
from starlette.types import ASGIApp

from pillion.api import app as api_app
from pillion.api import internal as internal_app
from pillion.artifacts.store import ArtifactStore
from pillion.control import accounts, imports, jobs, leftovers, models, pools, prices
from pillion.control.agents import agents
from pillion.control.billing import Billing
from pillion.control.changes import Changes
from pillion.control.context import Control, Settings
from pillion.control.controller import Controller
from pillion.control.oidc import Provider
from pillion.control.snapshots import Gateways, Publisher
from pillion.fleet.local import LocalProvisioner
from pillion.main.config import Config, ConfigError
from pillion.main.files import private_once, write_private
from pillion.main.lifetime import Stop
from pillion.main.tracing import Traced, trace_to, tracer_provider
from pillion.store.database import Database

IMPORTS = 4  # at a time
DAY_S = 86400.0

log = structlog.get_logger(__name__)

FIRST_LOOK_S = 5.0


async def control(
    config: Config, api: socket.socket, internal: socket.socket, internal_token: str, keep_engines: bool
) -> int:
    """Run until told to stop; the exit status. Engines end too, unless they are kept or the parent just died."""
    stop = Stop()
    stop.listen()
    provider = tracer_provider(trace_to(config), "control")
    async with AsyncExitStack() as stack:
        if provider is not None:
            stack.push_async_callback(asyncio.to_thread, provider.shutdown)
        ctl = await _compose(config, stack)
        if provider is not None:
            ctl.changes.spans = Traced(provider)
        await models.check_catalogue(ctl)
        await _bootstrap(ctl, config)
        await pools.ensure(ctl)
        await prices.ensure(ctl)
        holder = f"{_name(config)}:{os.getpid()}:{secrets.token_hex(4)}"
        tasks = [
            asyncio.create_task(ctl.controller.run(), name="controller"),
            asyncio.create_task(leftovers.run(ctl, _keep(config)), name="leftovers"),
            asyncio.create_task(Billing(ctl, holder).run(), name="billing"),
            *(
                asyncio.create_task(
                    jobs.run(ctl, holder, imports.KIND, imports.work, imports.ended), name=f"imports:{number}"
                )
                for number in range(IMPORTS)
            ),
        ]
        # What the API says of replicas is known only after a first look at them.
        await ctl.controller.ticked.wait(0, FIRST_LOOK_S)
        servers = [
            _server(api_app.build(ctl, provider), api),
            _server(internal_app.build(ctl, internal_token), internal),
        ]
        try:
            await _until_stopped(stop, [*tasks, *servers])
        finally:
            ctl.publisher.close()
            for task in [*tasks, *servers]:
                task.cancel()
            await asyncio.gather(*tasks, *servers, return_exceptions=True)
        if not keep_engines and not stop.parent_died:
            await ctl.controller.end_all()
        await ctl.controller.release()
    return 0


async def _until_stopped(stop: Stop, running: list[asyncio.Task[None]]) -> None:
    """Until told to stop; raises what one of the tasks died of."""
    waiting = asyncio.create_task(stop.event.wait())
    done, _ = await asyncio.wait([waiting, *running], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for task in done - {waiting}:
        task.result()


async def _compose(config: Config, stack: AsyncExitStack) -> Control:
    db = Database.open(config.database_url)
    stack.push_async_callback(db.close)
    await db.migrate()
    async with db.transaction() as tx:
        pepper = await tx.settings.get_or_create("pepper", secrets.token_bytes(32))
    changes = Changes()
    ctl = Control(
        db=db,
        artifacts=ArtifactStore(config.artifacts_url),
        catalogue=config.catalogue(),
        settings=Settings(
            max_rank=config.limits.max_rank,
            drain_s=config.limits.drain_s,
            flip_drain_s=config.limits.flip_drain_s,
            models_root=config.models_root,
            work_dir=config.data_dir / "work",
            caps=config.tiers.caps,
            public_url=config.server.public_url,
            session_s=config.auth.session_hours * 3600,
            billing=config.billing.enabled,
        ),
        clock=time.time,
        choice=secrets.choice,
        pepper=pepper,
        vault=Fernet(_vault_key(config)),
        changes=changes,
        agents=await stack.enter_async_context(agents(changes)),
        gateways=Gateways(time.time),
        publisher=Publisher(pepper, time.time, secrets.token_hex(8)),
        provider=_provider(config),
        provisioners={
            region.name: LocalProvisioner(
                config.data_dir,
                region.name,
                config.artifacts_url,
                cache_bytes=int(config.artifacts.cache_gib * 2**30),
                traces=trace_to(config),
            )
            for region in config.catalogue().regions
        },
    )
    ctl.controller = Controller(ctl, _name(config))
    return ctl


def _keep(config: Config) -> leftovers.Keep:
    days = config.retention
    return leftovers.Keep(
        days.events_days * DAY_S, days.audit_days * DAY_S, days.job_logs_days * DAY_S, days.usage_days * DAY_S
    )


def _provider(config: Config) -> Provider | None:
    """The identity provider. Raises `ConfigError`."""
    given = config.oidc
    if not given.issuer:
        return None
    if not given.client_id:
        raise ConfigError("oidc.client_id is missing")
    if importlib.util.find_spec("authlib") is None:
        raise ConfigError("[oidc] needs the package authlib: install pillion[oidc]")
    secret = os.environ.get(given.client_secret_env, "") if given.client_secret_env else ""
    if given.client_secret_env and not secret:
        raise ConfigError(f"oidc.client_secret_env: there is no {given.client_secret_env} in the environment")
    return Provider(given.issuer, given.client_id, secret, given.scopes, given.account or None)


def _name(config: Config) -> str:
    """The same at every start over one data directory: who comes back need not wait for its own lease to run out."""
    return private_once(
        config.data_dir / "control-id", lambda: f"{socket.gethostname()}:{secrets.token_hex(8)}"
    )


def _vault_key(config: Config) -> bytes:
    """The key secrets are encrypted with: never in the database."""
    return private_once(config.data_dir / "secret-key", lambda: Fernet.generate_key().decode()).encode()


async def _bootstrap(ctl: Control, config: Config) -> None:
    path = config.data_dir / "admin-key"
    preset = os.environ.get("PILLION_ADMIN_KEY") or None
    key = await accounts.bootstrap(ctl, preset, lambda text: write_private(path, text + "\n"))
    if key is not None:
        print(f"admin key (also in {path}, shown only now): {key}", flush=True)


class _Server(uvicorn.Server):
    """Signals are ours: uvicorn would take them and exit on its own terms."""

    def install_signal_handlers(self) -> None:
        return

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)


def _server(app: ASGIApp, bound: socket.socket) -> asyncio.Task[None]:
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
            lifespan="off",
            server_header=False,
        )
    )

    async def run() -> None:
        try:
            await server.serve([bound])
        except asyncio.CancelledError:
            server.should_exit = True
            await server.shutdown([bound])
            raise

    return asyncio.create_task(run(), name=f"server:{bound.getsockname()[1]}")
