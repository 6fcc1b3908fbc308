"""The internal API, on a listener of its own: gateways fetch routing snapshots and tell what was used here."""

from __future__ import annotations

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pillion.control import metrics, slices, usage
from pillion.control.context import Control
from pillion.control.joining import Door
from pillion.core.budgets import Ask
from pillion.core.errors import UnavailableError
from pillion.core.usage import Demand, Report

MAX_WAIT_S = 30.0
MIN_CREDENTIAL = 32


def build(control: Control, token: str) -> Starlette:
    """`token`: of those that share control's data directory."""
    door = Door(control, token)

    async def guarded(request: Request) -> Response:
        if not await door.admits(_bearer(request)):
            return Response(status_code=401)
        return await _HANDLERS[request.url.path](control, request)

    async def join(request: Request) -> Response:
        """A one-time token as bearer, the credential that it is to buy as body: 204."""
        credential = (await request.body()).decode("ascii", "replace")
        try:
            joined = len(credential) >= MIN_CREDENTIAL and await door.join(_bearer(request), credential)
        except UnavailableError:
            return Response(status_code=503)
        return Response(status_code=204 if joined else 401)

    routes = [Route(path, guarded, methods=["GET" if path in _READS else "POST"]) for path in _HANDLERS]
    return Starlette(routes=[*routes, Route("/internal/v1/join", join, methods=["POST"])])


def _bearer(request: Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ")


async def _snapshot(control: Control, request: Request) -> Response:
    """`?gateway=<id>&after=<version>&epoch=<epoch>&wait=<s>`: what comes next (msgpack: a delta to that version of that
    epoch, or a snapshot), or 204 where there is nothing newer.

    Asking for what comes after a version says that the gateway has applied it.
    """
    try:
        after = int(request.query_params.get("after", "0"))
        wait = min(MAX_WAIT_S, float(request.query_params.get("wait", "0")))
    except ValueError:
        return Response(status_code=400)
    control.gateways.heard(request.query_params.get("gateway", "?")[:80], after)
    data = await control.publisher.after(after, wait, request.query_params.get("epoch"))
    if data is None:
        return Response(status_code=204)
    return Response(data, media_type="application/msgpack")


async def _usage(control: Control, request: Request) -> Response:
    """Takes a `Report`, answers a `Mark`."""
    try:
        report = msgspec.msgpack.decode(await request.body(), type=Report)
    except msgspec.MsgspecError:
        return Response(status_code=400)
    try:
        return _packed(await usage.take(control, report))
    except UnavailableError:
        return Response(status_code=503)


async def _limits(control: Control, request: Request) -> Response:
    """Takes a `Demand`, answers `Shares`."""
    try:
        demand = msgspec.msgpack.decode(await request.body(), type=Demand)
    except msgspec.MsgspecError:
        return Response(status_code=400)
    return _packed(control.shares.told(demand))


async def _budgets(control: Control, request: Request) -> Response:
    """Takes an `Ask`, answers `Given`."""
    try:
        ask = msgspec.msgpack.decode(await request.body(), type=Ask)
    except msgspec.MsgspecError:
        return Response(status_code=400)
    try:
        return _packed(await slices.lease(control, ask))
    except UnavailableError:
        return Response(status_code=503)


def _packed(answer: msgspec.Struct) -> Response:
    return Response(msgspec.msgpack.encode(answer), media_type="application/msgpack")


async def _metrics(control: Control, request: Request) -> Response:
    try:
        return Response(await metrics.page(control), media_type=metrics.CONTENT_TYPE)
    except UnavailableError:
        return Response(status_code=503)


_READS = ("/metrics", "/internal/v1/snapshot")
_HANDLERS = {
    "/metrics": _metrics,
    "/internal/v1/snapshot": _snapshot,
    "/internal/v1/usage": _usage,
    "/internal/v1/limits": _limits,
    "/internal/v1/budgets": _budgets,
}
