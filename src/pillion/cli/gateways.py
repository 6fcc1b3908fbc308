"""`pillion gateways`."""

from __future__ import annotations

from typing import Annotated

import typer

from pillion.cli.options import Json, Limit
from pillion.cli.session import session

app = typer.Typer(help="Gateways that joined by a token (operator).", no_args_is_help=True)


@app.command("list")
def list_gateways(ctx: typer.Context, limit: Limit = None, as_json: Json = False) -> None:
    """List gateways that joined, may join, or were revoked."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.admin.gateways.list(limit=limit), columns.GATEWAYS, as_json)


@app.command("add")
def add_gateway(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What to call it.")] = "",
    as_json: Json = False,
) -> None:
    """Make a token by which one gateway joins, once. It is shown this once."""
    from pillion.cli import output

    with session(ctx) as client:
        made = client.admin.gateways.add(name)
    if as_json:
        output.print_json(made.raw)
        return
    until = "" if made.expires_at is None else f", valid until {output.moment(made.expires_at)}"
    output.note(f"gateway {made.id}{until}; its token is not shown again:")
    typer.echo(made.token)


@app.command("revoke")
def revoke_gateway(
    ctx: typer.Context,
    gateway: Annotated[str, typer.Argument(help="Its id, as in the list.")],
    as_json: Json = False,
) -> None:
    """Tell a gateway nothing any more, and take nothing from it."""
    from pillion.cli import output

    with session(ctx) as client:
        client.admin.gateways.revoke(gateway)
    if as_json:
        output.print_json({"id": gateway, "deleted": True})
    else:
        output.note(f"revoked {gateway}")
