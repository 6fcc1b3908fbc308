"""The control API: thin routes over control's use cases, one module per noun."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pillion import __version__
from pillion.api import accounts, adapters, instances, jobs, keys, models
from pillion.api.errors import ErrorBody
from pillion.control.context import Control
from pillion.core.errors import InvalidRequestError, NotFoundError, PillionError

log = structlog.get_logger(__name__)


def error_response(error: PillionError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers())


async def _known(_: Request, error: Exception) -> Response:
    assert isinstance(error, PillionError)
    return error_response(error)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    reasons = tuple(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors())
    param = ".".join(str(part) for part in error.errors()[0]["loc"][1:]) or None
    return error_response(InvalidRequestError("; ".join(reasons), param=param, reasons=reasons))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(NotFoundError(f"there is nothing at {request.url.path}; see /openapi.json."))
    body = InvalidRequestError(str(error.detail)).body()
    return JSONResponse(body, error.status_code, dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected", path=request.url.path, method=request.method, exc_info=error)
    return error_response(PillionError("something went wrong on our side; the log has the details."))


def build(control: Control) -> FastAPI:
    """The application over `control`. Errors of every kind come in OpenAI's shape."""
    app = FastAPI(
        title="Pillion",
        version=__version__,
        description="Many LoRA adapters on a few running base models.",
        responses={"4XX": {"description": "An error in OpenAI's shape.", "model": ErrorBody}},
    )
    app.state.control = control
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    for module in (adapters, instances, models, jobs, keys, accounts):
        app.include_router(module.router)

    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    PillionError: _known,
    RequestValidationError: _invalid,
    HTTPException: _http,
    Exception: _unexpected,
}
