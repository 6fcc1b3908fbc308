"""Errors for people: one line that says what is wrong, every finding, and the id to ask about."""

from __future__ import annotations

import typer

from pillion.sdk.errors import AuthenticationError, PillionAPIError, PillionError


def explain(error: PillionError) -> None:
    """`error: … (code)` on stderr, findings as bullets, the request's id."""
    from pillion.cli.output import plain

    typer.echo(f"error: {plain(error.message)} ({plain(error.code)})", err=True)
    for reason in error.reasons:
        if reason != error.message:
            typer.echo(f"  - {plain(reason)}", err=True)
    if isinstance(error, AuthenticationError):
        typer.echo("  a key is given by --api-key or PILLION_API_KEY", err=True)
    if isinstance(error, PillionAPIError):
        if error.retry_after is not None:
            typer.echo(f"  try again in {error.retry_after:g} s", err=True)
        if error.request_id:
            typer.echo(f"  request id: {plain(error.request_id)}", err=True)
