"""Logging in through the identity provider, where one is configured."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse

from pillion.api.auth import COOKIE, Address, Ctl
from pillion.api.logins import set_cookie
from pillion.control import oidc
from pillion.core.errors import InvalidLoginError

router = APIRouter(tags=["auth"])

BEGUN = "pillion_login"
_AWAY: dict[int | str, dict[str, Any]] = {
    302: {"description": "On to the identity provider, or back from it."}
}

Text = Annotated[str | None, Query(max_length=2000)]


@router.get("/v1/auth/oidc", status_code=302, response_class=RedirectResponse, responses=_AWAY)
async def begin_login(
    control: Ctl,
    address: Address,
    request: Request,
    invite: Text = None,
    account: Text = None,
    next: Text = None,
) -> RedirectResponse:
    """On to the provider; with an `invite`'s token to become a member. In the end the browser goes to `next`."""
    control.login_limits.take(None, address)
    start = await oidc.begin(control, invite, account, next or "/")
    response = RedirectResponse(start.url, 302)
    set_cookie(control, request, response, BEGUN, start.cookie, oidc.BEGUN_S)
    return response


@router.get(oidc.PATH, status_code=302, response_class=RedirectResponse, responses=_AWAY)
async def end_login(
    control: Ctl,
    address: Address,
    request: Request,
    state: Text = None,
    code: Text = None,
    error: Text = None,
) -> RedirectResponse:
    """Where the provider sends the browser back to."""
    begun = request.cookies.get(BEGUN)
    if begun is None or state is None or code is None:
        raise InvalidLoginError(f"the login was not finished: {(error or 'nothing came back')[:200]}.")
    made, then = await oidc.finish(control, begun, state, code, address)
    response = RedirectResponse(then, 302)
    set_cookie(control, request, response, COOKIE, made.token, control.settings.session_s)
    response.delete_cookie(BEGUN)
    return response
