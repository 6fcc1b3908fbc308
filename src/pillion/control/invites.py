"""Invites: a one-time token that makes its bearer a member, or lets one who is set a new password. Nothing is mailed."""

from __future__ import annotations

from dataclasses import replace

from pillion.control import logins, members, quotas
from pillion.control.context import Control
from pillion.control.keys import Principal, still_member
from pillion.control.people_views import InviteView, invite_view
from pillion.control.views import Deleted, Page
from pillion.core import keys
from pillion.core.errors import NotFoundError
from pillion.core.names import new_id
from pillion.core.permissions import OF_MEMBERS, Role
from pillion.store.rows import Invite, Member
from pillion.store.transaction import Tx

VALID_S = 14 * 86400.0
TOKEN_LENGTH = 40
PREFIX = "pii_"


async def listing(control: Control, who: Principal) -> Page[InviteView]:
    """Those that wait, and those that nobody took in time."""
    async with control.db.read() as tx:
        return Page([invite_view(row) for row in await tx.invites.list(who.account)])


async def create(control: Control, who: Principal, email: str, role: Role) -> InviteView:
    """For somebody new, or for a member: whoever has the token sets that member's password anew."""
    return await _create(control, who, who.account, email, role)


async def create_for(control: Control, who: Principal, account: str, email: str, role: Role) -> InviteView:
    """By the operator, for any account: its first owner, or one who is locked out."""
    async with control.db.read() as tx:
        row = await tx.accounts.get(account)
    if row is None or row.deleted_at is not None:
        raise NotFoundError(f"there is no account {account[:80]!r}.")
    return await _create(control, who, account, email, role)


async def revoke(control: Control, who: Principal, id: str) -> Deleted:
    async with control.db.transaction() as tx:
        if not await tx.invites.delete(who.account, id):
            raise NotFoundError(f"there is no invite {id[:80]!r} that waits.")
        await _record(control, tx, who.account, "invite_revoked", id, who.key)
    return Deleted(id)


async def accept(control: Control, token: str, name: str, password: str) -> logins.Opened:
    """Makes its bearer a member, who is logged in then. Raises `NotFoundError`, the same for every reason."""
    async with control.db.read() as tx:
        invite = await waiting(control, tx, token)
    members.check_password(password, invite.email, name)
    hashed = await control.passwords.hash(password)
    async with control.db.transaction() as tx:
        member = await joined(control, tx, await waiting(control, tx, token), name, password=hashed)
        return await logins.open_for(control, tx, member, "/v1/invites/accept")


async def joined(
    control: Control,
    tx: Tx,
    invite: Invite,
    name: str,
    *,
    password: str | None = None,
    subject: str | None = None,
) -> Member:
    """The member that the invite makes, or whom it gives a new way in. The invite is used up."""
    account, now = invite.account_id, control.clock()
    await tx.accounts.lock(account)
    if not await tx.invites.accept(account, invite.id, now):
        raise _unknown()
    if invite.member_id is None:
        await quotas.check_room(control, tx, account, "members")
        member = await tx.members.create(
            account,
            new_id("mem", control.choice),
            email=invite.email,
            name=name,
            role=invite.role,
            now=now,
            password=password,
            subject=subject,
        )
    else:
        given = {"password": password} if password is not None else {"subject": subject}
        changed = await tx.members.update(account, invite.member_id, **given)
        assert changed is not None  # an invite goes with its member
        member = changed
        await tx.logins.end_all(account, member=member.id)
    who = Principal(account, member.id, frozenset(OF_MEMBERS), member.role, member.id)
    kind = "member_joined" if invite.member_id is None else "member_way_in_changed"
    await members.record(control, tx, who, kind, member, role=member.role, invited_by=invite.created_by)
    return member


async def waiting(control: Control, tx: Tx, token: str) -> Invite:
    """The invite of a token. Raises `NotFoundError`, the same for every reason."""
    invite = await tx.everyone.invite_by_digest(keys.digest(control.pepper, token))
    if invite is None or invite.accepted_at is not None or invite.expires_at <= control.clock():
        raise _unknown()
    account = await tx.accounts.get(invite.account_id)
    if account is None or account.suspended_at is not None or account.deleted_at is not None:
        raise _unknown()
    return invite


def _unknown() -> NotFoundError:
    return NotFoundError("this invite is unknown, was used, was withdrawn, or is over; ask for another.")


async def _create(control: Control, who: Principal, account: str, email: str, role: Role) -> InviteView:
    email, now = members.checked_email(email), control.clock()
    token = PREFIX + "".join(control.choice(keys.ALPHABET) for _ in range(TOKEN_LENGTH))
    async with control.db.transaction() as tx:
        member = await tx.members.by_email(account, email)
        if member is None:
            await quotas.check_room(control, tx, account, "members")
        await quotas.check_room(control, tx, account, "invites")
        if account == who.account:
            await _check_still(tx, who)
        row = await tx.invites.create(
            account,
            new_id("inv", control.choice),
            email=email,
            role=role if member is None else member.role,
            digest=keys.digest(control.pepper, token),
            by=who.key,
            now=now,
            expires_at=now + VALID_S,
            member=None if member is None else member.id,
        )
        await _record(control, tx, account, "invite_created", row.id, who.key, email=email, role=row.role)
    return invite_view(row, token)


async def _check_still(tx: Tx, who: Principal) -> None:
    """Who was removed or owns no more while they asked makes no invite. The account is held."""
    if who.member is None:
        return
    member = await still_member(tx, who.account, who.member)
    replace(who, role=member.role).need("team")


async def _record(
    control: Control, tx: Tx, account: str, kind: str, id: str, by: str, **detail: object
) -> None:
    await tx.events.append(
        account,
        at=control.clock(),
        kind=kind,
        subject=f"invite:{id}",
        detail={"by": by, **detail},
    )
