"""Logging in: a browser's session, of a member by password or of whoever has an API key."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace

from pillion.control import login_audit, members
from pillion.control.context import Control
from pillion.control.keys import Principal, admitted, authenticate
from pillion.control.login_limits import TooManyTriesError
from pillion.control.people_views import SessionView, member_view
from pillion.core import keys
from pillion.core.errors import (
    AmbiguousRefError,
    CsrfError,
    InvalidLoginError,
    InvalidRequestError,
    NotLoggedInError,
    account_suspended,
)
from pillion.core.permissions import OF_MEMBERS
from pillion.store.rows import Member
from pillion.store.transaction import Tx

PATH = "/v1/auth/login"
TOKEN_LENGTH = 43
MAX_ACCOUNTS = 8  # that one e-mail address is looked for in


@dataclass(frozen=True)
class Opened:
    """A new session: what its cookie holds, and what is shown of it."""

    token: str
    view: SessionView


async def with_password(
    control: Control, email: str, password: str, account: str | None, address: str
) -> Opened:
    """`account` (name or id) is needed only by who has the same address and password in several.

    Raises `InvalidLoginError`, after the same work for every reason; `RateLimitError`.
    """
    email, way = email.strip().lower()[: members.MAX_EMAIL], way_of(PATH, address)
    try:
        control.login_limits.take(email, address)
    except TooManyTriesError as error:
        if error.first:
            async with control.db.read() as tx:
                people = await tx.everyone.members_by_email(email, MAX_ACCOUNTS)
            await login_audit.refused(control, people, way, error)
        raise
    async with control.db.read() as tx:
        people = await tx.everyone.members_by_email(email, MAX_ACCOUNTS, account)
        named = {m.id: await tx.accounts.get(m.account_id) for m in people}
    right = [m for m in people if await control.passwords.check(password, m.password)]
    if not people:
        await control.passwords.check(password, None)
    if not right:
        wrong = InvalidLoginError("the e-mail address or the password is wrong.")
        await login_audit.refused(control, people, way, wrong)
        raise wrong
    if len(right) > 1:
        which = ", ".join(sorted(row.name for m in right if (row := named[m.id])))
        raise AmbiguousRefError(f"you are in several accounts: {which}. Say which.", param="account")
    return await _enter(control, right[0], password, way)


async def with_key(control: Control, key: str, address: str) -> Opened:
    """What the key may do, as long as it is good."""
    control.login_limits.take(None, address)
    who = await authenticate(control, key, address)
    async with control.db.transaction() as tx:
        return await _open(control, tx, who, None, way_of(PATH, address))


async def open_for(control: Control, tx: Tx, member: Member, way: str) -> Opened:
    """A session of a member who has shown who they are, in this `way`."""
    seen = await tx.members.update(member.account_id, member.id, last_login_at=control.clock())
    assert seen is not None
    return await _open(control, tx, _as(seen), seen, way)


def way_of(path: str, address: str) -> str:
    return f"{path} from {address}" if address else path


async def enter(control: Control, token: str, address: str) -> Principal:
    """Who has this cookie. Raises `NotLoggedInError`, `AccountSuspendedError`, and what the key of it raises."""
    async with control.db.read() as tx:
        found = await tx.everyone.logged_in(keys.digest(control.pepper, token))
    if found is None or found.login.expires_at <= control.clock():
        raise NotLoggedInError("you are not logged in, or no longer.")
    if found.key is not None:
        return admitted(control, found.key, address)
    if found.suspended:
        raise account_suspended()
    if found.member is None:
        raise NotLoggedInError("you are not logged in any more.")
    return _as(found.member)


async def session(control: Control, who: Principal, token: str | None) -> SessionView:
    """Who asks, by key or by cookie."""
    async with control.db.read() as tx:
        member = None if who.member is None else await tx.members.get(who.account, who.member)
        found = token and await tx.everyone.logged_in(keys.digest(control.pepper, token))
    view = _view(who, member if who.key == who.member else None)
    if not token or not found:
        return view
    return replace(view, csrf_token=csrf_token(control, token), expires_at=found.login.expires_at)


async def leave(control: Control, who: Principal, token: str) -> bool:
    async with control.db.transaction() as tx:
        return await tx.logins.end(who.account, keys.digest(control.pepper, token))


async def change_password(control: Control, who: Principal, token: str, current: str, new: str) -> None:
    """Of the member who is logged in, whose other sessions end."""
    async with control.db.read() as tx:
        member = await tx.members.get(who.account, who.key)
    if member is None:
        raise InvalidRequestError("only a member who is logged in has a password.")
    control.login_limits.take(member.email, None)
    if not await control.passwords.check(current, member.password):
        raise InvalidLoginError("the present password is another.")
    members.check_password(new, member.email, member.name)
    hashed = await control.passwords.hash(new)
    async with control.db.transaction() as tx:
        await tx.members.update(who.account, member.id, password=hashed)
        await tx.logins.end_all(who.account, member=member.id, but=keys.digest(control.pepper, token))
        await members.record(control, tx, who, "member_way_in_changed", member)


def csrf_token(control: Control, token: str) -> str:
    """What a page must send along: other sites' pages cannot read it."""
    return keys.digest(control.pepper, f"csrf {token}")


def check_csrf(control: Control, token: str, given: str | None) -> None:
    """Raises `CsrfError`."""
    if not hmac.compare_digest((given or "").encode(), csrf_token(control, token).encode()):
        raise CsrfError("send the session's csrf_token in the header x-pillion-csrf.")


async def _enter(control: Control, member: Member, password: str, way: str) -> Opened:
    fresh = None
    if member.password is not None and control.passwords.outdated(member.password):
        fresh = await control.passwords.hash(password)
    async with control.db.transaction() as tx:
        if fresh is not None:
            await tx.members.update(member.account_id, member.id, password=fresh)
        return await open_for(control, tx, member, way)


async def _open(control: Control, tx: Tx, who: Principal, member: Member | None, way: str) -> Opened:
    now = control.clock()
    expires_at = now + control.settings.session_s
    token = "".join(control.choice(keys.ALPHABET) for _ in range(TOKEN_LENGTH))
    await tx.everyone.forget_logins(now)
    await login_audit.entered(control, tx, who, way)
    await tx.logins.create(
        who.account,
        keys.digest(control.pepper, token),
        now=now,
        expires_at=expires_at,
        member=member.id if member else None,
        key=None if member else who.key,
    )
    view = _view(who, member)
    return Opened(token, replace(view, csrf_token=csrf_token(control, token), expires_at=expires_at))


def _as(member: Member) -> Principal:
    return Principal(member.account_id, member.id, frozenset(OF_MEMBERS), member.role, member.id)


def _view(who: Principal, member: Member | None) -> SessionView:
    shown = None if member is None else member_view(member)
    return SessionView(who.account, sorted(who.scopes), who.role, shown)
