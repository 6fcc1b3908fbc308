"""`pillion members`, `pillion invites`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pillion.cli.options import Json, Limit
from pillion.cli.session import session

if TYPE_CHECKING:
    from pillion.sdk.types import Invite

members = typer.Typer(help="The people of your account.", no_args_is_help=True)
invites = typer.Typer(help="Invites to your account.", no_args_is_help=True)


class Role(StrEnum):
    owner = "owner"
    member = "member"


MemberId = Annotated[str, typer.Argument(metavar="MEMBER", help="Their id, as in the list.")]
Email = Annotated[str, typer.Argument(metavar="EMAIL", help="A label: nothing is mailed.")]
InviteRole = Annotated[Role, typer.Option("--role", help="Owners invite, remove and promote members.")]


@members.command("list")
def list_members(ctx: typer.Context, limit: Limit = None, as_json: Json = False) -> None:
    """List the account's members."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.members.list(limit=limit), columns.MEMBERS, as_json)


@members.command("set-role")
def set_role(
    ctx: typer.Context,
    member: MemberId,
    role: Annotated[Role, typer.Argument(help="owner or member.")],
    as_json: Json = False,
) -> None:
    """Make a member an owner, or an owner a member. The last owner stays."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_record(client.members.update(member, role=role), columns.MEMBERS, as_json)


@members.command("remove")
def remove_member(ctx: typer.Context, member: MemberId, as_json: Json = False) -> None:
    """Remove a member; the keys that they made are revoked."""
    from pillion.cli import output

    with session(ctx) as client:
        gone = client.members.remove(member)
    if gone.unacknowledged:
        output.note(f"warning: their keys are not refused yet by {', '.join(gone.unacknowledged)}")
    if as_json:
        output.print_json(gone.raw)
    else:
        output.note(f"removed {gone.email}")


@invites.command("list")
def list_invites(ctx: typer.Context, limit: Limit = None, as_json: Json = False) -> None:
    """List invites that nobody has accepted."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.invites.list(limit=limit), columns.INVITES, as_json)


@invites.command("create")
def create_invite(
    ctx: typer.Context, email: Email, role: InviteRole = Role.member, as_json: Json = False
) -> None:
    """Invite somebody, or let a member set a new password. Prints the token: hand it over; it is shown this once."""
    with session(ctx) as client:
        show_invite(client.invites.create(email, role=role), as_json)


@invites.command("revoke")
def revoke_invite(
    ctx: typer.Context,
    invite: Annotated[str, typer.Argument(help="The invite's id, as in the list.")],
    as_json: Json = False,
) -> None:
    """Withdraw an invite."""
    from pillion.cli import output

    with session(ctx) as client:
        client.invites.revoke(invite)
    if as_json:
        output.print_json({"id": invite, "deleted": True})
    else:
        output.note(f"withdrew {invite}")


def show_invite(invite: Invite, as_json: bool) -> None:
    """The token alone on stdout."""
    from pillion.cli import output

    if as_json:
        output.print_json(invite.raw)
        return
    until = "" if invite.expires_at is None else f", valid until {output.moment(invite.expires_at)}"
    output.note(f"invite {invite.id} for {invite.email} ({invite.role}){until}; it is not shown again:")
    typer.echo(invite.token)
