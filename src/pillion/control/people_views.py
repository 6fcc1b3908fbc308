"""What the control API shows of members, invites and logins. Times are seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

from pillion.core.permissions import Role
from pillion.store.rows import Invite, Member


@dataclass(frozen=True)
class MemberView:
    """`unacknowledged`: gateways that have not heard yet of keys that went with a member."""

    id: str
    email: str
    name: str
    role: Role
    created_at: float
    last_login_at: float | None = None
    has_password: bool = False
    unacknowledged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class InviteView:
    """`token` is there only in the answer that made it. `member_id`: who may set a new password with it, where it is not
    for somebody new.
    """

    id: str
    email: str
    role: Role
    created_by: str
    created_at: float
    expires_at: float
    member_id: str | None = None
    token: str | None = None


@dataclass(frozen=True)
class SessionView:
    """Who is logged in. `csrf_token` goes into the header `x-pillion-csrf` of whatever changes something; keys need none."""

    account_id: str
    scopes: list[str]
    role: Role | None
    member: MemberView | None
    csrf_token: str | None = None
    expires_at: float | None = None


def member_view(row: Member) -> MemberView:
    return MemberView(
        row.id,
        row.email,
        row.name,
        row.role,
        row.created_at,
        row.last_login_at,
        row.password is not None,
    )


def invite_view(row: Invite, token: str | None = None) -> InviteView:
    return InviteView(
        row.id,
        row.email,
        row.role,
        row.created_by,
        row.created_at,
        row.expires_at,
        row.member_id,
        token,
    )
