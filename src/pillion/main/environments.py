"""`pillion engines`: what is installed, and installing it."""

from __future__ import annotations

import dataclasses
import json
import sys

from pillion.core.errors import PillionError
from pillion.engines.environments import EngineEnvironments


def install(name: str | None) -> int:
    """Install an engine with a spinner that tells what it does; the exit status."""
    from rich.console import Console

    console = Console(stderr=True)
    try:
        with console.status("looking at this machine") as status:
            done = EngineEnvironments().install(name, progress=status.update)
    except PillionError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    print(f"{done.name} {done.version} is ready in {done.path}")
    return 0


def show(as_json: bool) -> int:
    """List what is installed; the exit status."""
    found = EngineEnvironments().list()
    if as_json:
        print(json.dumps([dataclasses.asdict(engine) for engine in found], default=str))
        return 0
    for engine in found:
        state = "runs" if engine.runs else f"does not run: {engine.why}"
        print(f"{engine.name:<10} {engine.version or '-':<10} {state:<8} {engine.path or ''}".rstrip())
    return 0
