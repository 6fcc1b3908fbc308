"""`pillion events`, `pillion audit`: what happened, and who did what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from pillion.cli.options import Follow, Json
from pillion.cli.session import session

if TYPE_CHECKING:
    from pillion.sdk.types import Event

Everyone = Annotated[bool, typer.Option("--everyone", help="Of all accounts (for the operator).")]
Last = Annotated[int, typer.Option("--limit", min=1, help="At most this many, the last ones.")]


def events(
    ctx: typer.Context,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Only this kind; may be repeated.")] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", help="Only of this, such as adapter:adp_… or instance:5.")
    ] = None,
    follow: Follow = False,
    limit: Last = 50,
    everyone: Everyone = False,
    as_json: Json = False,
) -> None:
    """Show what happened last, and with --follow what happens: launches, restarts, loads, evictions, moves…"""
    from pillion.cli import columns, output

    kinds = kind or []
    with session(ctx) as client:
        found = client.events.list(kinds=kinds, subject=subject, everyone=everyone, newest=True, limit=limit)
        last = list(found)[::-1]
        if not follow:
            output.print_records(last, columns.EVENTS, as_json)
            return
        print_as_they_come(last, as_json)
        after = last[-1].id if last else None
        coming = client.events.follow(after=after, kinds=kinds, subject=subject, everyone=everyone)
        print_as_they_come(coming, as_json)


def audit(
    ctx: typer.Context,
    action: Annotated[str | None, typer.Option("--action", help="Only this, such as attach_adapter.")] = None,
    limit: Last = 50,
    everyone: Everyone = False,
    as_json: Json = False,
) -> None:
    """Show who did what, the last first: every call that was to change something, and its outcome."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        found = client.events.audit(action=action, limit=limit, everyone=everyone)
        output.print_records(found, columns.AUDIT, as_json)


def print_as_they_come(found: Iterable[Event], as_json: bool) -> None:
    """One line for each, at once."""
    from pillion.cli import output

    for event in found:
        if as_json:
            output.print_line(event.raw)
        else:
            detail = ", ".join(f"{name}={value}" for name, value in event.detail.items())
            words = (output.utc(event.at) or "", event.kind, event.subject, detail)
            typer.echo("  ".join(output.plain(word) for word in words if word))
