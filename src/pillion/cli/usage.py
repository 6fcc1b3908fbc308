"""`pillion usage`: sums, and the single requests."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from pillion.cli.options import Json, Limit
from pillion.cli.session import session

app = typer.Typer(invoke_without_command=True, subcommand_metavar="[events]")


class Window(StrEnum):
    day = "24h"
    week = "7d"
    thirty_days = "30d"
    month = "month"


class GroupBy(StrEnum):
    model = "model"
    adapter = "adapter"
    key = "key"
    day = "day"


@app.callback()
def usage(
    ctx: typer.Context,
    window: Annotated[Window, typer.Option("--window", help="How far back.")] = Window.day,
    group_by: Annotated[GroupBy, typer.Option("--group-by", help="What a line stands for.")] = GroupBy.model,
    as_json: Json = False,
) -> None:
    """Sum up requests and tokens, or list them."""
    from pillion.cli import output

    if ctx.invoked_subcommand is not None:
        return

    with session(ctx) as client:
        summary = client.usage.summary(window=window, group_by=group_by)
    if as_json:
        output.print_json(summary)
        return
    groups: list[dict[str, Any]] = summary.get("data") or []
    titles = list(dict.fromkeys(title for group in groups for title in group))
    rows = [
        ["" if group.get(title) is None else output.plain(group[title]) for title in titles]
        for group in groups
    ]
    output.print_rows(titles, rows)


@app.command("events")
def list_events(
    ctx: typer.Context,
    adapter: Annotated[
        str | None, typer.Option("--adapter", metavar="ID", help="Of one adapter: adp_….")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="ID", help="Of one API key: key_….")] = None,
    after: Annotated[
        str | None, typer.Option("--after", metavar="ID", help="Only what came after this event.")
    ] = None,
    limit: Limit = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, with all columns.")] = False,
    as_json: Json = False,
) -> None:
    """List requests, oldest first. The last one's id, given as --after, is where the next call goes on."""
    from pillion.cli import columns, output

    if as_csv and (as_json or limit is not None):
        raise typer.BadParameter("it goes with neither --json nor --limit.", param_hint="--csv")
    with session(ctx) as client:
        if as_csv:
            for line in client.usage.csv(adapter_id=adapter, key_id=key, after=after):
                typer.echo(line)
            return
        found = client.usage.events(adapter_id=adapter, key_id=key, after=after, limit=limit)
        output.print_records(found, columns.USAGE, as_json)
