"""Logging in through an identity provider: OpenID Connect's code flow, with PKCE, state and nonce.

https://openid.net/specs/openid-connect-core-1_0.html, sections 3.1.2 and 3.1.3; RFC 7636. Needs `pillion[oidc]`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import structlog
from cryptography.fernet import InvalidToken

from pillion.control import invites, login_audit, logins, members, quotas
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.core import keys
from pillion.core.errors import (
    AmbiguousRefError,
    InvalidLoginError,
    InvalidRequestError,
    NameTakenError,
    NotFoundError,
    UnavailableError,
)
from pillion.core.names import new_id
from pillion.core.permissions import OF_MEMBERS
from pillion.store.rows import Member
from pillion.store.transaction import Tx

PATH = "/v1/auth/oidc/callback"
BEGUN_S = 600
LEEWAY_S = 60
TIMEOUT_S = 10.0
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Provider:
    """`account`: the name of the account that whoever has no membership yet joins; None: they need an invite."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    scopes: str = "openid email profile"
    account: str | None = None


class Begun(msgspec.Struct, frozen=True):
    """What is to be remembered of a login until the provider sends the browser back."""

    state: str
    nonce: str
    verifier: str
    invite: str | None
    account: str | None
    then: str


@dataclass(frozen=True)
class Start:
    """Where the browser goes, and what it keeps meanwhile."""

    url: str
    cookie: str


async def begin(control: Control, invite: str | None, account: str | None, then: str) -> Start:
    """`then`: a path of ours to go to in the end. Raises `NotFoundError` where no provider is configured."""
    from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
    from authlib.oauth2.rfc7636 import create_s256_code_challenge

    provider = _provider(control)
    if urlsplit(then).netloc or not then.startswith("/") or then.startswith(("//", "/\\")):
        raise InvalidRequestError("next must be a path of this server.", param="next")
    async with _http() as http:
        found = await _discover(http, provider)
    begun = Begun(_random(control), _random(control), _random(control), invite, account, then)
    url: str = prepare_grant_uri(
        str(found["authorization_endpoint"]),
        provider.client_id,
        "code",
        redirect_uri=_redirect_uri(control),
        scope=provider.scopes,
        state=begun.state,
        nonce=begun.nonce,
        code_challenge=create_s256_code_challenge(begun.verifier),
        code_challenge_method="S256",
    )
    kept = control.vault.encrypt_at_time(msgspec.json.encode(begun), int(control.clock()))
    return Start(url, kept.decode())


async def finish(
    control: Control, cookie: str, state: str, code: str, address: str
) -> tuple[logins.Opened, str]:
    """The session of who came back with a code, and where they go. Raises `InvalidLoginError`."""
    way = logins.way_of(PATH, address)
    try:
        return await _finish(control, cookie, state, code, way)
    except InvalidLoginError as error:
        await login_audit.refused(control, (), way, error)
        raise


async def _finish(
    control: Control, cookie: str, state: str, code: str, way: str
) -> tuple[logins.Opened, str]:
    provider, begun = _provider(control), _begun(control, cookie)
    if begun is None or begun.state != state:
        raise InvalidLoginError("this login was not begun in this browser, or too long ago; begin again.")
    async with _http() as http:
        found = await _discover(http, provider)
        tokens = await _redeem(http, provider, found, code, begun.verifier, _redirect_uri(control))
        keyset = await _get(http, str(found.get("jwks_uri")))
    claims = _verified(provider, tokens, keyset, begun.nonce, control.clock())
    async with control.db.transaction() as tx:
        member = await _member(control, tx, provider, begun, claims)
        return await logins.open_for(control, tx, member, way), begun.then


def _provider(control: Control) -> Provider:
    if control.provider is None:
        raise NotFoundError("no identity provider is configured here.")
    return control.provider


def _redirect_uri(control: Control) -> str:
    return control.settings.public_url.rstrip("/") + PATH


def _random(control: Control) -> str:
    return "".join(control.choice(keys.ALPHABET) for _ in range(48))


def _begun(control: Control, cookie: str) -> Begun | None:
    try:
        kept = control.vault.decrypt_at_time(cookie.encode(), BEGUN_S, int(control.clock()))
        return msgspec.json.decode(kept, type=Begun)
    except (InvalidToken, msgspec.MsgspecError):
        return None


@asynccontextmanager
async def _http() -> AsyncIterator[httpx.AsyncClient]:
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False) as client:
            yield client
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        log.warning("identity_provider_failed", error=repr(error))
        raise UnavailableError(
            "the identity provider does not answer as it should; try again shortly.",
            code="login_unavailable",
            retry_after=5.0,
        ) from error


async def _get(http: httpx.AsyncClient, url: str) -> dict[str, Any]:
    answer = await http.get(url)
    answer.raise_for_status()
    found = answer.json()
    if not isinstance(found, dict):
        raise ValueError(f"{url} answered no JSON object")
    return found


async def _discover(http: httpx.AsyncClient, provider: Provider) -> dict[str, Any]:
    found = await _get(http, f"{provider.issuer.rstrip('/')}/.well-known/openid-configuration")
    if found["issuer"] != provider.issuer:
        raise ValueError(f"it says that it is {found['issuer']!r}")
    return found


async def _redeem(
    http: httpx.AsyncClient, provider: Provider, found: dict[str, Any], code: str, verifier: str, uri: str
) -> dict[str, Any]:
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": uri,
        "code_verifier": verifier,
    }
    auth = httpx.BasicAuth(provider.client_id, provider.client_secret)
    answer = await http.post(str(found["token_endpoint"]), data=form, auth=auth)
    if answer.status_code == 400:
        raise InvalidLoginError("the identity provider does not take the code; begin again.")
    answer.raise_for_status()
    tokens: dict[str, Any] = answer.json()
    return tokens


def _verified(
    provider: Provider, tokens: dict[str, Any], keyset: dict[str, Any], nonce: str, now: float
) -> dict[str, Any]:
    """The claims of the id token. Raises `InvalidLoginError`."""
    from authlib.oidc.core import CodeIDToken
    from joserfc import jwt
    from joserfc.errors import JoseError
    from joserfc.jwk import KeySet

    try:
        token = jwt.decode(
            str(tokens.get("id_token")),
            KeySet.import_key_set(keyset),  # type: ignore[arg-type]
            algorithms=ALGORITHMS,
        )
        claims = CodeIDToken(
            token.claims,
            token.header,
            {
                "iss": {"essential": True, "value": provider.issuer},
                "aud": {"essential": True, "value": provider.client_id},
            },
            {
                "nonce": nonce,
                "client_id": provider.client_id,
                "access_token": tokens.get("access_token") if "at_hash" in token.claims else None,
            },
        )
        claims.validate(now=int(now), leeway=LEEWAY_S)
    except (JoseError, ValueError, TypeError) as error:
        log.warning("id_token_refused", error=repr(error))
        raise InvalidLoginError("the identity provider's token is not valid; begin again.") from error
    return dict(claims)


async def _member(
    control: Control, tx: Tx, provider: Provider, begun: Begun, claims: dict[str, Any]
) -> Member:
    subject = f"{provider.issuer} {claims['sub']}"
    name = str(claims.get("name") or claims.get("email") or claims["sub"])[:100]
    if begun.invite is not None:
        invite = await invites.waiting(control, tx, begun.invite)
        known = await tx.everyone.members_by_subject(subject, 1, invite.account_id)
        if any(m.id != invite.member_id for m in known):
            raise NameTakenError("you are a member of this account already.")
        return await invites.joined(control, tx, invite, name, subject=subject)
    known = await tx.everyone.members_by_subject(subject, logins.MAX_ACCOUNTS, begun.account)
    if len(known) > 1:
        rows = [await tx.accounts.get(m.account_id) for m in known]
        which = ", ".join(sorted(row.name for row in rows if row is not None))
        raise AmbiguousRefError(f"you are in several accounts: {which}. Say which.", param="account")
    return known[0] if known else await _newcomer(control, tx, provider, begun.account, subject, name, claims)


async def _newcomer(
    control: Control,
    tx: Tx,
    provider: Provider,
    named: str | None,
    subject: str,
    name: str,
    claims: dict[str, Any],
) -> Member:
    """A member of the account that newcomers join, by an address that the provider vouches for.

    Who `named` another account joins none.
    """
    account = await tx.accounts.by_name(provider.account) if provider.account else None
    if account is not None and named not in (None, account.id, account.name):
        account = None
    if account is None or account.suspended_at is not None or claims.get("email_verified") is not True:
        raise InvalidLoginError("nobody here has invited you; ask an owner of your account for an invite.")
    await quotas.check_room(control, tx, account.id, "members")
    member = await tx.members.create(
        account.id,
        new_id("mem", control.choice),
        email=members.checked_email(str(claims.get("email", ""))),
        name=name,
        role="member",
        now=control.clock(),
        subject=subject,
    )
    who = Principal(account.id, member.id, frozenset(OF_MEMBERS), member.role, member.id)
    await members.record(control, tx, who, "member_joined", member, role=member.role)
    return member
