"""Who calls: the account behind the API key, and what it may do."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from pillion.control.context import Control
from pillion.control.keys import Principal, authenticate
from pillion.core.errors import InvalidApiKeyError

_bearer = HTTPBearer(auto_error=False, description="An API key: `pil_…`")


def control_of(request: Request) -> Control:
    control = request.app.state.control
    assert isinstance(control, Control)
    return control


Ctl = Annotated[Control, Depends(control_of)]


async def _principal(
    control: Ctl, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Principal:
    if credentials is None:
        raise InvalidApiKeyError("send your API key as `Authorization: Bearer pil_…`.")
    return await authenticate(control, credentials.credentials)


Caller = Annotated[Principal, Depends(_principal)]


async def _manager(caller: Caller) -> Principal:
    return caller.need("manage")


async def _operator(caller: Caller) -> Principal:
    return caller.need("admin")


Manager = Annotated[Principal, Depends(_manager)]
Operator = Annotated[Principal, Depends(_operator)]
