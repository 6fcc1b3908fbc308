"""Logging in, for the console: a cookie that scripts cannot read, and a token that other sites cannot send."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pillion.api.auth import COOKIE, Address, Anyone, Cookie, Ctl
from pillion.api.requests import AcceptBody, LoginBody, PasswordBody
from pillion.control import invites, logins
from pillion.control.context import Control
from pillion.control.people_views import SessionView
from pillion.control.views import Deleted
from pillion.core.errors import InvalidRequestError, NotLoggedInError

router = APIRouter(tags=["auth"])


def set_cookie(
    control: Control, request: Request, response: Response, name: str, value: str, age: float
) -> None:
    """`Secure` wherever clients come over TLS."""
    over_tls = "https" in (request.headers.get("x-forwarded-proto"), request.url.scheme)
    response.set_cookie(
        name,
        value,
        max_age=int(age),
        httponly=True,
        samesite="lax",
        secure=over_tls or control.settings.public_url.startswith("https:"),
    )


def opened(control: Control, request: Request, response: Response, made: logins.Opened) -> SessionView:
    set_cookie(control, request, response, COOKIE, made.token, control.settings.session_s)
    response.headers["cache-control"] = "no-store"
    return made.view


@router.post("/v1/auth/login")
async def log_in(
    control: Ctl, address: Address, request: Request, response: Response, body: LoginBody
) -> SessionView:
    """By e-mail address and password, or by an API key. The session is in the cookie of the answer."""
    if body.api_key is not None and body.email is None and body.password is None:
        made = await logins.with_key(control, body.api_key, address)
    elif body.email is not None and body.password is not None and body.api_key is None:
        made = await logins.with_password(control, body.email, body.password, body.account, address)
    else:
        raise InvalidRequestError("give email and password, or api_key alone.")
    return opened(control, request, response, made)


@router.post("/v1/auth/logout")
async def log_out(control: Ctl, caller: Anyone, cookie: Cookie, response: Response) -> Deleted:
    response.delete_cookie(COOKIE)
    return Deleted("session", cookie is not None and await logins.leave(control, caller, cookie))


@router.get("/v1/auth/session")
async def get_session(control: Ctl, caller: Anyone, cookie: Cookie, response: Response) -> SessionView:
    """Who is asking, and the token that changes need."""
    response.headers["cache-control"] = "no-store"
    return await logins.session(control, caller, cookie)


@router.put("/v1/auth/password")
async def change_password(control: Ctl, caller: Anyone, cookie: Cookie, body: PasswordBody) -> SessionView:
    """One's own. Other sessions of the same member end."""
    if cookie is None:
        raise NotLoggedInError("log in with a password to change it.")
    await logins.change_password(control, caller, cookie, body.current, body.password)
    return await logins.session(control, caller, cookie)


@router.post("/v1/invites/accept", status_code=201)
async def accept_invite(control: Ctl, request: Request, response: Response, body: AcceptBody) -> SessionView:
    """With the token from the invite, by whoever was given it; logged in from then on."""
    made = await invites.accept(control, body.token, body.name, body.password)
    return opened(control, request, response, made)
