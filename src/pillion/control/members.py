"""The people of an account: who they are, what they may do, and that one of them owns it."""

from __future__ import annotations

from dataclasses import replace

from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.people_views import MemberView, member_view
from pillion.control.views import Page
from pillion.core.errors import ConflictError, InvalidRequestError, NotFoundError
from pillion.core.permissions import Role
from pillion.store.rows import Member
from pillion.store.transaction import Tx

MAX_EMAIL = 254
MIN_PASSWORD = 10


async def listing(control: Control, who: Principal) -> Page[MemberView]:
    async with control.db.read() as tx:
        return Page([member_view(row) for row in await tx.members.list(who.account)])


async def update(
    control: Control, who: Principal, id: str, role: Role | None, name: str | None
) -> MemberView:
    """Another role (by an owner), or another name (one's own, too). Invites of who owns no more are withdrawn.

    Raises `ConflictError` for the last owner.
    """
    async with control.db.transaction() as tx:
        await tx.accounts.lock(who.account)
        row = await _row(tx, who, id)
        if row.id != who.member or role is not None:
            who.need("team")
        if role == "member":
            await _keep_an_owner(tx, row)
        values = {k: v for k, v in (("role", role), ("name", name)) if v is not None}
        changed = (await tx.members.update(who.account, row.id, **values) if values else None) or row
        if role is not None and role != row.role:
            withdrawn = await _withdraw(tx, row) if role == "member" else []
            await record(control, tx, who, "member_role_changed", row, role=role, invites_withdrawn=withdrawn)
    return member_view(changed)


async def remove(control: Control, who: Principal, id: str) -> MemberView:
    """By an owner, or by themselves. Their logins end, what keys they made is revoked, what invites is withdrawn.

    Raises `ConflictError` for the last owner.
    """
    async with control.db.transaction() as tx:
        await tx.accounts.lock(who.account)
        row = await _row(tx, who, id)
        if row.id != who.member:
            who.need("team")
        await _keep_an_owner(tx, row)
        revoked = await tx.keys.revoke_all(who.account, control.clock(), by=row.id)
        withdrawn = await _withdraw(tx, row)
        await tx.members.delete(who.account, row.id)
        told = {"keys_revoked": list(revoked), "invites_withdrawn": withdrawn}
        await record(control, tx, who, "member_removed", row, **told)
    behind: list[str] = []
    if revoked:
        control.changes.notify()
        behind = await control.controller.published()
    return replace(member_view(row), unacknowledged=behind)


async def record(control: Control, tx: Tx, who: Principal, kind: str, row: Member, **detail: object) -> None:
    await tx.events.append(
        row.account_id,
        at=control.clock(),
        kind=kind,
        subject=f"member:{row.id}",
        detail={"by": who.key, "email": row.email, **detail},
    )


def checked_email(text: str) -> str:
    """As it is kept: lower case. Raises `InvalidRequestError` for what is none."""
    email = text.strip().lower()
    name, at, domain = email.partition("@")
    if not (name and at and domain) or "@" in domain or len(email) > MAX_EMAIL or not email.isprintable():
        raise InvalidRequestError(f"email {text[:80]!r} is not an e-mail address.", param="email")
    if any(letter.isspace() for letter in email):
        raise InvalidRequestError(f"email {text[:80]!r} has a space in it.", param="email")
    return email


def check_password(password: str, *known: str) -> None:
    """Raises `InvalidRequestError` for one that is too easy: `known` is what anybody would try."""
    if len(password) < MIN_PASSWORD:
        raise InvalidRequestError(
            f"password is too short: it takes {MIN_PASSWORD} characters or more.", param="password"
        )
    if len(set(password)) < 4 or password.lower() in {text.lower() for text in known}:
        raise InvalidRequestError("password is too easy to guess; choose another.", param="password")


async def _row(tx: Tx, who: Principal, id: str) -> Member:
    row = await tx.members.get(who.account, (who.member or "") if id == "me" else id)
    if row is None:
        raise NotFoundError(f"there is no member {id[:80]!r} in your account.")
    return row


async def _withdraw(tx: Tx, row: Member) -> list[str]:
    """The invites that they made, or their keys did: else they might come back as what they were."""
    theirs = [key.id for key in await tx.keys.list(row.account_id) if key.created_by == row.id]
    return list(await tx.invites.withdraw(row.account_id, [row.id, *theirs]))


async def _keep_an_owner(tx: Tx, row: Member) -> None:
    if row.role == "owner" and await tx.members.owners(row.account_id) == 1:
        raise ConflictError(f"{row.email} is the last owner of the account; make somebody else owner first.")
