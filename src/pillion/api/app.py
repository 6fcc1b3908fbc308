"""The control API: thin routes over control's use cases, one module per noun."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pillion import __version__
from pillion.api import (
    accounts,
    adapters,
    billing,
    events,
    gateways,
    instances,
    jobs,
    keys,
    logins,
    members,
    metrics,
    models,
    oidc,
    usage,
    versions,
)
from pillion.api.audited import Audited
from pillion.api.errors import ErrorBody
from pillion.api.limits import BodyLimit
from pillion.control.context import Control
from pillion.core.errors import (
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    PillionError,
    RequestTooLargeError,
)

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

log = structlog.get_logger(__name__)

NOUNS = (
    adapters,
    versions,
    instances,
    events,
    models,
    jobs,
    keys,
    accounts,
    gateways,
    usage,
    billing,
    logins,
    members,
    oidc,
    metrics,
)
MAX_REASONS = 50  # a body may be wrong in very many ways
STREAMED = re.compile(r"/v1/adapters/(upload|[^/]+/versions)")


def error_response(error: PillionError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers())


async def _known(_: Request, error: Exception) -> Response:
    assert isinstance(error, PillionError)
    return error_response(error)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    first = found[:MAX_REASONS]
    reasons = tuple(_printable(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}") for e in first)
    if len(found) > len(first):
        reasons += (f"and {len(found) - len(first)} more",)
    where = () if found[0]["type"] == "json_invalid" else found[0]["loc"][1:]
    param = _printable(".".join(str(part) for part in where)) or None
    return error_response(InvalidRequestError("; ".join(reasons), param=param, reasons=reasons))


async def _http(request: Request, error: Exception) -> Response:
    """What the framework itself refuses. It keeps its status and headers, in our shape."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(NotFoundError(f"there is nothing at {request.url.path}; see /openapi.json."))
    if error.status_code == 413:
        return error_response(RequestTooLargeError(str(error.detail)))
    if error.status_code == 405:
        return error_response(MethodNotAllowedError(request.method, request.url.path, _methods(request)))
    body = InvalidRequestError(str(error.detail)).body()
    return JSONResponse(body, error.status_code, dict(error.headers or {}))


def _methods(request: Request) -> list[str]:
    """What the path takes, by all of its routes."""
    routes = [route for noun in NOUNS for route in noun.router.routes if isinstance(route, APIRoute)]
    found = {m for route in routes if route.path_regex.match(request.url.path) for m in route.methods or ()}
    return sorted(found) or ["GET"]


async def _left(request: Request, _: Exception) -> Response:
    """Nobody is there to read it; what was received so far is gone."""
    log.info("client_left", path=request.url.path)
    return Response(status_code=499)


def _printable(text: str) -> str:
    """At most 300 characters of it, as JSON can carry them: a client's own keys are in it."""
    return text[:300].encode("utf-8", "replace").decode()


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected", path=request.url.path, method=request.method, exc_info=error)
    return error_response(PillionError("something went wrong on our side; the log has the details."))


def build(control: Control, tracer_provider: TracerProvider | None = None) -> FastAPI:
    """The application over `control`. Errors of every kind come in OpenAI's shape."""
    app = FastAPI(
        title="Pillion",
        version=__version__,
        description="Many LoRA adapters on a few running base models.",
        telemetry={
            "tracing": tracer_provider is not None,
            "tracer_provider": tracer_provider,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
        },
        redirect_slashes=False,  # a gateway is in front: where to would be wrong
        generate_unique_id_function=lambda route: route.name,
        responses={
            "4XX": {"description": "An error in OpenAI's shape.", "model": ErrorBody},
            "5XX": {"description": "An error in OpenAI's shape.", "model": ErrorBody},
        },
    )
    app.state.control = control
    app.add_middleware(Audited)
    app.add_middleware(BodyLimit, streamed=STREAMED)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    for module in NOUNS:
        app.include_router(module.router)

    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    PillionError: _known,
    RequestValidationError: _invalid,
    HTTPException: _http,
    ClientDisconnect: _left,
    Exception: _unexpected,
}
