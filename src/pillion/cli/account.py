"""`pillion keys`, `pillion account`, `pillion accounts`."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pillion.cli import team
from pillion.cli.options import Json, Limit
from pillion.cli.session import session

if TYPE_CHECKING:
    from pillion.sdk.types import Key

keys = typer.Typer(help="API keys of your account.", no_args_is_help=True)
own = typer.Typer(help="Your account.", no_args_is_help=True)
accounts = typer.Typer(help="All accounts (for the operator).", no_args_is_help=True)


class Scope(StrEnum):
    inference = "inference"
    manage = "manage"
    admin = "admin"


class Tier(StrEnum):
    shared = "shared"
    reserved = "reserved"
    dedicated = "dedicated"


Scopes = Annotated[
    list[Scope] | None,
    typer.Option("--scope", help="What it may do; may be repeated. [default: inference]"),
]
AccountId = Annotated[str, typer.Argument(metavar="ACCOUNT", help="The account's id.")]
KeyName = Annotated[str, typer.Argument(metavar="NAME", help="A name to know it by.")]


@keys.command("list")
def list_keys(ctx: typer.Context, limit: Limit = None, as_json: Json = False) -> None:
    """List the account's keys, without their secrets."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.keys.list(limit=limit), columns.KEYS, as_json)


@keys.command("create")
def create_key(
    ctx: typer.Context,
    name: KeyName,
    scope: Scopes = None,
    days: Annotated[
        float | None, typer.Option("--expires", min=0, metavar="DAYS", help="Refuse it after so many days.")
    ] = None,
    requests: Annotated[int | None, typer.Option("--requests", min=1, help="Requests per minute.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="Tokens per minute.")] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="CIDR", help="Only from there; may be repeated. [default: anywhere]"),
    ] = None,
    spend: Annotated[
        str | None,
        typer.Option("--spend-limit", metavar="AMOUNT", help="At most so much per calendar month."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it. It is shown this once."""
    import time

    from pillion.cli import output

    with session(ctx) as client:
        made = client.keys.create(
            name,
            scopes=scope or None,
            expires_at=None if days is None else time.time() + days * 86_400,
            requests_per_minute=requests,
            tokens_per_minute=tokens,
            allow=allow or None,
            spend_limit=None if spend is None else output.micros(spend),
        )
        _show_new(made, as_json)


@keys.command("revoke")
def revoke_key(
    ctx: typer.Context,
    key: Annotated[str, typer.Argument(help="The key's id, as in the list.")],
    as_json: Json = False,
) -> None:
    """Revoke a key. Returns when every gateway refuses it."""
    from pillion.cli import output

    with session(ctx) as client:
        revoked = client.keys.revoke(key)
    if revoked.unacknowledged:
        output.note(f"warning: not confirmed yet by {', '.join(revoked.unacknowledged)}")
    if as_json:
        output.print_json(revoked.raw)
    else:
        output.note(f"revoked {key}")


@own.command("get")
def get_account(ctx: typer.Context, as_json: Json = False) -> None:
    """Show the account that the key belongs to."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_record(client.account.get(), columns.ACCOUNTS, as_json)


@own.command("set-hf-token")
def set_hf_token(ctx: typer.Context, as_json: Json = False) -> None:
    """Give the account a Hugging Face token, for private repos: asked for, or read from standard input."""
    from pillion.cli import output

    token = typer.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    if not token.strip():
        raise typer.BadParameter("no token was given on standard input.", param_hint="token")
    with session(ctx) as client:
        answer = client.account.set_hf_token(token.strip())
    _done("the token is kept", answer, as_json, output)


@own.command("delete-hf-token")
def delete_hf_token(ctx: typer.Context, as_json: Json = False) -> None:
    """Forget the account's Hugging Face token."""
    from pillion.cli import output

    with session(ctx) as client:
        answer = client.account.delete_hf_token()
    _done("the token is forgotten", answer, as_json, output)


@accounts.command("list")
def list_accounts(ctx: typer.Context, limit: Limit = None, as_json: Json = False) -> None:
    """List all accounts."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.admin.accounts.list(limit=limit), columns.ACCOUNTS, as_json)


@accounts.command("create")
def create_account(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The account's name.")],
    tier: Annotated[Tier | None, typer.Option("--tier", help="Its caps. [default: shared]")] = None,
    as_json: Json = False,
) -> None:
    """Make an account. Then give it a first key with create-key."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_record(client.admin.accounts.create(name, tier=tier), columns.ACCOUNTS, as_json)


@accounts.command("get")
def get_any_account(ctx: typer.Context, account: AccountId, as_json: Json = False) -> None:
    """Show an account, with what it has of its tier's caps."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_record(client.admin.accounts.get(account), columns.ACCOUNTS, as_json)


@accounts.command("update")
def update_account(
    ctx: typer.Context,
    account: AccountId,
    name: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    tier: Annotated[Tier | None, typer.Option("--tier", help="Another tier, with its caps.")] = None,
    local_only: Annotated[
        bool | None, typer.Option("--local-only/--not-local-only", help="Never to providers or peers.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Change an account."""
    wanted = {"name": name, "tier": tier, "local_only": local_only}
    changes = {key: value for key, value in wanted.items() if value is not None}
    _change(ctx, account, changes, as_json)


@accounts.command("suspend")
def suspend_account(ctx: typer.Context, account: AccountId, as_json: Json = False) -> None:
    """Refuse an account's calls and logins. What runs of it runs on."""
    _change(ctx, account, {"suspended": True}, as_json)


@accounts.command("resume")
def resume_account(ctx: typer.Context, account: AccountId, as_json: Json = False) -> None:
    """Let a suspended account in again."""
    _change(ctx, account, {"suspended": False}, as_json)


@accounts.command("delete")
def delete_account(ctx: typer.Context, account: AccountId, as_json: Json = False) -> None:
    """Delete an account of which nothing runs. What it used and paid stays on the books."""
    from pillion.cli import output

    with session(ctx) as client:
        client.admin.accounts.delete(account)
    _done(f"deleted {account}", {"id": account, "deleted": True}, as_json, output)


@accounts.command("invite")
def invite_to_account(
    ctx: typer.Context,
    account: AccountId,
    email: team.Email,
    role: team.InviteRole = team.Role.owner,
    as_json: Json = False,
) -> None:
    """Invite an account's first owner, or one who is locked out. Prints the token; it is shown this once."""
    with session(ctx) as client:
        team.show_invite(client.admin.accounts.invite(account, email, role=role), as_json)


@accounts.command("create-key")
def create_account_key(
    ctx: typer.Context,
    account: AccountId,
    name: KeyName,
    scope: Scopes = None,
    as_json: Json = False,
) -> None:
    """Make a key for an account, to hand over, and print it. It is shown this once."""
    with session(ctx) as client:
        _show_new(client.admin.accounts.create_key(account, name, scopes=scope or None), as_json)


def _change(ctx: typer.Context, account: str, changes: dict[str, Any], as_json: bool) -> None:
    from pillion.cli import columns, output

    with session(ctx) as client:
        changed = client.admin.accounts.update(account, **changes)
    if changed.unacknowledged:
        output.note(f"warning: not confirmed yet by {', '.join(changed.unacknowledged)}")
    output.print_record(changed, columns.ACCOUNTS, as_json)


def _show_new(key: Key, as_json: bool) -> None:
    """The key alone on stdout, so that a script can take it from there."""
    from pillion.cli import output

    if as_json:
        output.print_json(key.raw)
        return
    output.note(f"key {key.id} ({', '.join(key.scopes)}); it is not shown again:")
    typer.echo(key.key)


def _done(words: str, answer: Any, as_json: bool, output: Any) -> None:
    if as_json:
        output.print_json(answer)
    else:
        output.note(words)
