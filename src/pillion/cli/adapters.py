"""`pillion adapters`: what is registered. How it is served is in `serving`, its versions are in `versions`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pillion.cli import serving, versions
from pillion.cli.options import Base, BoundRegion, Follow, Json, Limit, NoWait, Ref, Timeout
from pillion.cli.session import session

if TYPE_CHECKING:
    from pillion.sdk.types import Adapter

app = typer.Typer(help="LoRA adapters: register, deploy, load, delete.", no_args_is_help=True)

NewName = Annotated[str, typer.Argument(metavar="NAME", help="Its name: 1 to 63 of a-z 0-9 . _ -")]


@app.command("list")
def list_(
    ctx: typer.Context,
    base: Annotated[str | None, typer.Option("--base", "-b", help="Only those of this base model.")] = None,
    search: Annotated[
        str | None, typer.Option("--search", help="Only those with this in name or label.")
    ] = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """List your adapters."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        found = client.adapters.list(base_model=base, q=search, limit=limit)
        output.print_records(found, columns.ADAPTERS, as_json)


@app.command()
def get(ctx: typer.Context, ref: Ref, as_json: Json = False) -> None:
    """Show one adapter: its version, its modules, who serves it, and how to call it."""
    with session(ctx) as client:
        _show(client.adapters.get(ref), as_json)


@app.command()
def upload(
    ctx: typer.Context,
    name: NewName,
    file: Annotated[
        Path, typer.Argument(help="adapter_model.safetensors, a .tar.gz or .zip, or a PEFT folder.")
    ],
    base: Base,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Its adapter_config.json.")] = None,
    region: BoundRegion = None,
    as_json: Json = False,
) -> None:
    """Register an adapter from a file or folder on this machine."""
    from pillion.cli import progress

    with session(ctx) as client:
        with progress.transfer(f"uploading {file.name}") as on_bytes:
            adapter = client.adapters.upload(
                name, base, file, config=config, region=region, on_bytes=on_bytes
            )
        _show(adapter, as_json)


@app.command("import")
def import_(
    ctx: typer.Context,
    name: NewName,
    base: Base,
    repo: Annotated[str, typer.Option("--repo", help="The Hugging Face repo, as owner/name.")],
    revision: Annotated[
        str | None, typer.Option("--revision", help="A branch, tag or commit. [default: main]")
    ] = None,
    region: BoundRegion = None,
    no_wait: NoWait = False,
    timeout: Timeout = 3600.0,
    as_json: Json = False,
) -> None:
    """Register an adapter from a Hugging Face repo.

    For a private one, first give the account a token: pillion account set-hf-token.
    """
    from pillion.cli import output, progress

    with session(ctx) as client:
        begun = client.adapters.register_hf(name, base, repo, revision=revision, region=region)
        if no_wait:
            output.note(f"importing; follow it with: pillion jobs follow {begun.job.id}")
            if as_json:
                output.print_json(begun.raw)
            else:
                _show(begun.adapter, as_json)
            return
        with progress.steps(f"importing {repo}") as told:
            client.jobs.wait(begun.job.id, timeout=timeout, on_progress=told)
        _show(client.adapters.get(begun.adapter.id), as_json)


@app.command()
def rename(
    ctx: typer.Context,
    ref: Ref,
    label: Annotated[str, typer.Argument(help="The new label; the former one goes on working.")],
    as_json: Json = False,
) -> None:
    """Change an adapter's label, the first part of <label>:<row id>."""
    with session(ctx) as client:
        _show(client.adapters.rename(ref, label), as_json)


@app.command()
def delete(
    ctx: typer.Context,
    ref: Ref,
    force: Annotated[
        bool, typer.Option("--force", help="Also if it is in use: it is drained first.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete an adapter and all its versions."""
    from pillion.cli import output

    with session(ctx) as client:
        answer = client.adapters.delete(ref, force=force)
    if as_json:
        output.print_json(answer)
    else:
        output.note(f"deleted {ref}")


@app.command()
def events(
    ctx: typer.Context, ref: Ref, follow: Follow = False, limit: Limit = None, as_json: Json = False
) -> None:
    """List what happened to an adapter. With --follow, JSON comes one object a line."""
    from pillion.cli import columns, output
    from pillion.cli import events as events_of

    with session(ctx) as client:
        found = client.adapters.events(ref, follow=follow, limit=limit)
        if follow:
            events_of.print_as_they_come(found, as_json)
        else:
            output.print_records(found, columns.EVENTS, as_json)


@app.command()
def download(
    ctx: typer.Context,
    ref: Ref,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file or folder. [default: here]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Download an adapter's live version; prints where it was put."""
    from pillion.cli import output, progress

    with session(ctx) as client, progress.transfer(f"downloading {ref}") as on_bytes:
        path = client.adapters.download(ref, target, on_bytes=on_bytes)
    if as_json:
        output.print_json({"path": str(path), "size_bytes": path.stat().st_size})
    else:
        typer.echo(str(path))


def _show(adapter: Adapter, as_json: bool) -> None:
    from pillion.cli import columns, output

    for warning in adapter.warnings:
        output.note(f"warning: {warning}")
    output.print_record(adapter, columns.ADAPTER, as_json)


versions.add_to(app)
serving.add_to(app)
