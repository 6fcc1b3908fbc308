"""`pillion instances`: base models that run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pillion.cli.options import (
    Engine,
    EngineOptions,
    Follow,
    GpuCount,
    GpuType,
    InstanceId,
    Json,
    Limit,
    MaxAdapters,
    MaxRank,
    NoWait,
    OnDemand,
    Regions,
    Replicas,
    Timeout,
    engine_options,
    lora_fields,
)
from pillion.cli.session import session

app = typer.Typer(help="Running base models: launch, watch, stop.", no_args_is_help=True)

WAIT_S = 1800.0


@app.command("list")
def list_(
    ctx: typer.Context,
    stopped: Annotated[bool, typer.Option("--all", "-a", help="Also those that were stopped.")] = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """List your instances and the shared pools."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        found = client.instances.list(stopped=stopped, limit=limit)
        output.print_records(found, columns.INSTANCES, as_json)


@app.command()
def get(ctx: typer.Context, instance: InstanceId, as_json: Json = False) -> None:
    """Show one instance: its replicas, its adapters, and how to call it."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_record(client.instances.get(instance), columns.INSTANCE, as_json)


@app.command()
def launch(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A model of the catalogue, or one you registered.")],
    lora: Annotated[
        bool, typer.Option("--lora", help="Take adapters. Fixed at launch; so are its caps.")
    ] = False,
    max_adapters: MaxAdapters = None,
    max_rank: MaxRank = None,
    on_demand: OnDemand = False,
    replicas: Replicas = None,
    region: Regions = None,
    gpu_type: GpuType = None,
    gpu_count: GpuCount = None,
    engine: Engine = None,
    image: Annotated[
        str | None, typer.Option("--image", help="A container image, where the operator allows it.")
    ] = None,
    custom_api_path: Annotated[
        str | None,
        typer.Option("--custom-api-path", help="The container speaks no OpenAI; this is its path."),
    ] = None,
    option: EngineOptions = None,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT_S,
    as_json: Json = False,
) -> None:
    """Launch a model. --max-adapters, --max-rank and --on-demand imply --lora."""
    from pillion.cli import columns, output, progress

    with_lora = lora or on_demand or max_adapters is not None or max_rank is not None
    wanted: dict[str, Any] = {
        "lora": lora_fields(max_adapters, max_rank, on_demand) if with_lora else None,
        "replicas": replicas,
        "regions": region or None,
        "gpu_type": gpu_type,
        "gpu_count": gpu_count,
        "engine": engine,
        "image": image,
        "custom_api_path": custom_api_path,
        "openai_compatible": None if custom_api_path is None else False,
        "options": engine_options(option),
    }
    with session(ctx) as client:
        launched = client.instances.launch(model, **wanted)
        output.note(f"instance {launched.id} is launching")
        if not no_wait:
            with progress.steps(f"instance {launched.id}") as told:
                launched = client.instances.wait_running(launched.id, timeout=timeout, on_progress=told)
        output.print_record(launched, columns.INSTANCE, as_json)


@app.command()
def stop(
    ctx: typer.Context,
    instance: InstanceId,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT_S,
    as_json: Json = False,
) -> None:
    """Stop an instance for good. Its adapters stay registered."""
    from pillion.cli import columns, output, progress

    with session(ctx) as client:
        stopped = client.instances.stop(instance)
        if not no_wait:
            with progress.steps(f"stopping instance {instance}") as told:
                stopped = client.instances.wait_stopped(instance, timeout=timeout, on_progress=told)
        output.print_record(stopped, columns.INSTANCE, as_json)


@app.command()
def logs(
    ctx: typer.Context,
    instance: InstanceId,
    follow: Follow = False,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, help="This many last lines. [default: 200]")
    ] = None,
    replica: Annotated[str | None, typer.Option("--replica", help="Only this replica's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each line as a JSON object.")] = False,
) -> None:
    """Print an instance's log."""
    from pillion.cli import output

    with session(ctx) as client:
        for line in client.instances.logs(instance, follow=follow, tail=tail, replica=replica):
            if as_json:
                output.print_line({"line": line})
            else:
                typer.echo(line)


@app.command()
def adapters(ctx: typer.Context, instance: InstanceId, as_json: Json = False) -> None:
    """List the adapters that an instance serves."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.instances.adapters(instance), columns.ATTACHMENTS, as_json)


@app.command()
def events(
    ctx: typer.Context,
    instance: InstanceId,
    follow: Follow = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """List what happened to an instance. With --follow, JSON comes one object a line."""
    from pillion.cli import columns, output
    from pillion.cli import events as events_of

    with session(ctx) as client:
        found = client.instances.events(instance, follow=follow, limit=limit)
        if not follow:
            output.print_records(found, columns.EVENTS, as_json)
            return
        events_of.print_as_they_come(found, as_json)
