"""Errors for people: one line that says what is wrong, every finding, and the id to ask about."""

from __future__ import annotations

import typer

from pillion.sdk.errors import AuthenticationError, PillionAPIError, PillionError


def explain(error: PillionError) -> None:
    """`error: … (code)` on stderr, findings as bullets, the request's id."""
    from pillion.cli.output import plain

    head, findings = _parts(error)
    typer.echo(f"error: {plain(head)} ({plain(error.code)})", err=True)
    for finding in findings:
        typer.echo(f"  - {plain(finding)}", err=True)
    if isinstance(error, AuthenticationError):
        typer.echo("  a key is given by --api-key or PILLION_API_KEY", err=True)
    if isinstance(error, PillionAPIError):
        if error.retry_after is not None:
            typer.echo(f"  try again in {error.retry_after:g} s", err=True)
        if error.request_id:
            typer.echo(f"  request id: {plain(error.request_id)}", err=True)


def _parts(error: PillionError) -> tuple[str, tuple[str, ...]]:
    """The message and the findings. Where the message ends in all of them, each is told once."""
    message, reasons = error.message, error.reasons
    if not reasons or not message.endswith(reasons[-1]) or not all(reason in message for reason in reasons):
        return message, reasons
    before = message.partition(reasons[0])[0].rstrip(" :;,")
    return (before, reasons) if before else (message, ())
