"""The agent's own HTTP: facts out, grants in. Loopback; one token, and a key that can only ask for loads."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from pillion.agent.board import Board
from pillion.agent.home import Home
from pillion.agent.logs import follow, tail
from pillion.agent.metrics import CONTENT_TYPE
from pillion.core.errors import ConflictError, InvalidApiKeyError, InvalidRequestError, PillionError
from pillion.core.replica import Grant
from pillion.core.spans import Carried, carried_in

MAX_WAIT_S = 60.0
MAX_TAIL = 100_000
MAX_GRANT_BYTES = 16 * 1024 * 1024
LOAD = "/v1/load"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class StaleGrantError(ConflictError):
    """A newer grant was given already."""

    code = "grant_stale"


@dataclass(frozen=True)
class Keys:
    """`token` opens all but loads, `load_key` these alone; an empty one opens nothing."""

    token: str
    load_key: str

    def open(self, path: str, given: bytes) -> bool:
        wanted = self.load_key if path == LOAD else self.token
        return hmac.compare_digest(given, f"Bearer {wanted}".encode()) and wanted != ""


def application(
    board: Board,
    home: Home,
    keys: Keys,
    accept: Callable[[Grant, Carried], None],
    stop: Callable[[float], Awaitable[None]],
    load: Callable[[bytes, Carried], Awaitable[float]],
    metrics: Callable[[], bytes],
) -> web.Application:
    """`accept` takes a grant or raises `PillionError`; `stop` drains for so many seconds and ends the engine.

    `load` takes a signed permit and gives the milliseconds of its load, or raises `PillionError`.
    """

    async def status(request: web.Request) -> web.StreamResponse:
        wait = min(_number(request, "wait", 0.0), MAX_WAIT_S)
        revision = int(_number(request, "revision", 0.0))
        found = await board.wait(request.query.get("epoch"), revision, wait)
        return _json(found)

    async def grant(request: web.Request) -> web.StreamResponse:
        try:
            given = msgspec.json.decode(await request.read(), type=Grant)
        except msgspec.MsgspecError as error:
            raise InvalidRequestError(f"this is no grant: {error}") from error
        accept(given, carried_in(request.headers))
        return _json({"version": given.version})

    async def logs(request: web.Request) -> web.StreamResponse:
        lines = min(int(_number(request, "tail", 100.0)), MAX_TAIL)
        if request.query.get("follow") != "true":
            text = "".join(f"{line}\n" for line in await asyncio.to_thread(tail, home.engine_log, lines))
            return web.Response(text=text)
        response = web.StreamResponse(headers={"content-type": "text/plain; charset=utf-8"})
        await response.prepare(request)
        async for line in follow(home.engine_log, lines):
            await response.write(f"{line}\n".encode())
        return response

    async def end(request: web.Request) -> web.StreamResponse:
        await stop(_number(request, "drain_s", 0.0))
        return _json(board.status)

    async def on_demand(request: web.Request) -> web.StreamResponse:
        return _json({"load_ms": await load(await request.read(), carried_in(request.headers))})

    async def counted(request: web.Request) -> web.StreamResponse:
        return web.Response(body=metrics(), headers={"content-type": CONTENT_TYPE})

    app = web.Application(middlewares=[_guarded(keys)], client_max_size=MAX_GRANT_BYTES)
    app.router.add_get("/metrics", counted)
    app.router.add_get("/v1/status", status)
    app.router.add_put("/v1/grant", grant)
    app.router.add_post(LOAD, on_demand)
    app.router.add_get("/v1/logs", logs)
    app.router.add_post("/v1/stop", end)
    return app


def check_newer(grant: Grant, replica: str, known: int) -> None:
    """Raises `InvalidRequestError` for another replica's grant, `StaleGrantError` for an old one."""
    if grant.replica != replica:
        raise InvalidRequestError(
            f"this grant is for {grant.replica!r}, this is {replica!r}.", param="replica"
        )
    if grant.version < known:
        raise StaleGrantError(f"grant {grant.version} is older than {known}, which is in force.")


def _guarded(keys: Keys) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            given = request.headers.get("authorization", "").encode(errors="replace")
            if not keys.open(request.path, given):
                raise InvalidApiKeyError("the agent needs its token.")
            return await handler(request)
        except PillionError as error:
            return _json(error.body(), error.status, error.headers())

    return guard


def _number(request: web.Request, name: str, default: float) -> float:
    text = request.query.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise InvalidRequestError(f"{name} must be a number, not {text!r}.", param=name)
    return value


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    data = msgspec.json.encode(body)
    return web.Response(body=data, status=status, headers=headers, content_type="application/json")
