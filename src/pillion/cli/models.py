"""`pillion models`, `pillion regions`, `pillion gpu-types`: what can be launched, and where."""

from __future__ import annotations

from typing import Annotated

import typer

from pillion.cli.options import Json
from pillion.cli.session import session

app = typer.Typer(help="Base models: the operator's catalogue and your own.", invoke_without_command=True)

ModelName = Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")]


@app.callback()
def models(ctx: typer.Context, as_json: Json = False) -> None:
    """Base models: the operator's catalogue and your own. Alone, lists them."""
    if ctx.invoked_subcommand is None:
        list_(ctx, as_json)


@app.command("list")
def list_(ctx: typer.Context, as_json: Json = False) -> None:
    """List the catalogue's models, then those you registered."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        found = [*client.catalog.list(), *client.registered_models.list()]
    output.print_records(found, columns.MODELS, as_json)


@app.command()
def get(ctx: typer.Context, name: ModelName, as_json: Json = False) -> None:
    """Show one model that you registered."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_record(client.registered_models.get(name), columns.MODELS, as_json)


@app.command()
def register(
    ctx: typer.Context,
    name: ModelName,
    repo: Annotated[str | None, typer.Option("--repo", help="A Hugging Face repo, as owner/name.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Its branch, tag or commit.")] = None,
    path: Annotated[
        str | None, typer.Option("--path", help="A directory on the server, under your root.")
    ] = None,
    region: Annotated[str | None, typer.Option("--region", help="The region that has the directory.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="chat or embedding. [default: chat]")] = None,
    no_lora: Annotated[bool, typer.Option("--no-lora", help="It takes no adapters.")] = False,
    as_json: Json = False,
) -> None:
    """Register a base model of your own: give exactly one of --repo and --path."""
    from pillion.cli import columns, output

    if (repo is None) == (path is None):
        raise typer.BadParameter("give exactly one of --repo and --path.", param_hint="--repo")
    if revision is not None and repo is None:
        raise typer.BadParameter("a revision is a --repo's.", param_hint="--revision")
    source = f"path:{path}" if repo is None else f"hf:{repo}" + (f"@{revision}" if revision else "")
    with session(ctx) as client:
        lora = False if no_lora else None
        model = client.registered_models.register(name, source, kind=kind, lora=lora, region=region)
        output.print_record(model, columns.MODELS, as_json)


@app.command()
def delete(ctx: typer.Context, name: ModelName, as_json: Json = False) -> None:
    """Delete a model that you registered."""
    from pillion.cli import output

    with session(ctx) as client:
        answer = client.registered_models.delete(name)
    if as_json:
        output.print_json(answer)
    else:
        output.note(f"deleted {name}")


def regions(ctx: typer.Context, as_json: Json = False) -> None:
    """List the regions."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.places.regions(), columns.REGIONS, as_json)


def gpu_types(ctx: typer.Context, as_json: Json = False) -> None:
    """List the GPU types and what an hour of each costs."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.places.gpu_types(), columns.GPU_TYPES, as_json)
