"""`pillion chat`: a prompt to a model, the answer as it comes."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from pillion.cli.session import session


def chat(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(help="<label>:<row id>, <base>:<adapter name>, <base>:<instance> or <base>.")
    ],
    prompt: Annotated[str, typer.Argument(help="What to say; - reads standard input.")],
    system: Annotated[str | None, typer.Option("--system", "-s", help="The system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="The longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, help="0 is greedy.")] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="Pick this adapter of the base MODEL.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole completion as JSON.")] = False,
) -> None:
    """Ask a model or adapter, and print its answer as it comes."""
    from pillion.cli import output

    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": sys.stdin.read() if prompt == "-" else prompt})
    wanted: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    options = {name: value for name, value in wanted.items() if value is not None}
    with session(ctx) as client:
        if as_json:
            output.print_json(client.chat.create(model, messages, adapter=adapter, **options))
            return
        _print_stream(client.chat.stream(model, messages, adapter=adapter, **options))


def _print_stream(chunks: Any) -> None:
    from pillion.cli import output
    from pillion.sdk.chat import text_of

    begun = False
    try:
        for chunk in chunks:
            text = text_of(chunk)
            if text:
                begun = True
                sys.stdout.write(output.printable(text) if output.on_terminal() else text)
                sys.stdout.flush()
    finally:
        if begun:
            typer.echo()
