"""From the global options to a client."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pillion.sdk import Pillion


@dataclass(frozen=True)
class Target:
    """The server and key given on the command line."""

    url: str | None = None
    api_key: str | None = field(default=None, repr=False)


def session(ctx: typer.Context) -> Pillion:
    """A client for the server that the command line, the environment or the defaults name. A context manager."""
    _spare_httpx_its_own_command_line()
    from pillion.sdk import Pillion

    target = ctx.find_object(Target) or Target()
    return Pillion(target.url, target.api_key)


def _spare_httpx_its_own_command_line() -> None:
    """httpx imports its own command, with rich, click and pygments, wherever these are installed.

    None in `sys.modules` makes that import fail, which httpx allows for: 0.3 s less for every command.
    """
    if "httpx" not in sys.modules:
        sys.modules["httpx._main"] = None  # type: ignore[assignment]
