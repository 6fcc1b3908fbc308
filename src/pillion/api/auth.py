"""Who calls: the account behind the API key, and what it may do."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from pillion.api import audited
from pillion.control import logins
from pillion.control.context import Control
from pillion.control.keys import Principal, authenticate
from pillion.core.errors import InvalidApiKeyError

COOKIE = "pillion_session"
CSRF_HEADER = "x-pillion-csrf"
HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})

_bearer = HTTPBearer(auto_error=False, description="An API key: `pil_…`")
_cookie = APIKeyCookie(
    name=COOKIE,
    auto_error=False,
    description=f"A browser's session; what changes something needs its token in `{CSRF_HEADER}`, too.",
)


def control_of(request: Request) -> Control:
    control = request.app.state.control
    assert isinstance(control, Control)
    return control


def address_of(request: Request) -> str:
    """The client's, as the gateway in front tells it: nobody else reaches this listener."""
    told = request.headers.get("x-forwarded-for", "")
    return told.rpartition(",")[2].strip() or (request.client.host if request.client else "")


Ctl = Annotated[Control, Depends(control_of)]
Address = Annotated[str, Depends(address_of)]
Cookie = Annotated[str | None, Security(_cookie)]


async def _principal(
    control: Ctl,
    address: Address,
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    cookie: Cookie,
) -> Principal:
    """A key counts before a cookie: browsers send no keys by themselves."""
    if "authorization" in request.headers or cookie is None:
        if credentials is None:
            raise InvalidApiKeyError("send your API key as `Authorization: Bearer pil_…`.")
        return await authenticate(control, credentials.credentials, address)
    caller = await logins.enter(control, cookie, address)
    if request.method not in HARMLESS:
        logins.check_csrf(control, cookie, request.headers.get(CSRF_HEADER))
    return caller


async def _written_down(
    request: Request, control: Ctl, caller: Annotated[Principal, Depends(_principal)]
) -> Principal:
    """Who calls, once it is written down that they do: where it is to change something."""
    await audited.begun(request, control, caller)
    return caller


Anyone = Annotated[Principal, Depends(_written_down)]


async def _reader(caller: Anyone) -> Principal:
    return caller.need("read")


async def _manager(caller: Anyone) -> Principal:
    return caller.need("manage")


async def _owner(caller: Anyone) -> Principal:
    return caller.need("team")


async def _operator(caller: Anyone) -> Principal:
    return caller.need("operate")


Caller = Annotated[Principal, Depends(_reader)]
Manager = Annotated[Principal, Depends(_manager)]
Owner = Annotated[Principal, Depends(_owner)]
Operator = Annotated[Principal, Depends(_operator)]
