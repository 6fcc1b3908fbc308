"""`pillion adapters`: where adapters are served: deploy, attach, move, load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pillion.cli.options import (
    Engine,
    GpuCount,
    GpuType,
    InstanceId,
    Json,
    MaxAdapters,
    MaxRank,
    NoWait,
    OnDemand,
    Ref,
    Regions,
    Replicas,
    Timeout,
    lora_fields,
)
from pillion.cli.session import session

if TYPE_CHECKING:
    from pillion.sdk import Pillion
    from pillion.sdk.types import Attachment

Backends = Annotated[
    list[int] | None,
    typer.Option(
        "--backend", min=1, help="An instance to load it on; may be repeated. [default: its base's]"
    ),
]
WAIT_S = 1800.0


def deploy(
    ctx: typer.Context,
    ref: Ref,
    instance: Annotated[
        int | None, typer.Option("--instance", min=1, help="Attach it to this instance.")
    ] = None,
    launch: Annotated[
        str | None,
        typer.Option("--launch", metavar="MODEL", help="Launch this model with LoRA, and attach it there."),
    ] = None,
    max_adapters: MaxAdapters = None,
    max_rank: MaxRank = None,
    on_demand: OnDemand = False,
    replicas: Replicas = None,
    region: Regions = None,
    gpu_type: GpuType = None,
    gpu_count: GpuCount = None,
    engine: Engine = None,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT_S,
    as_json: Json = False,
) -> None:
    """Serve an adapter: on a running instance, or on a new one.

    Give exactly one of --instance and --launch. The other options are the new instance's.
    """
    wanted: dict[str, Any] = {
        "lora": lora_fields(max_adapters, max_rank, on_demand),
        "replicas": replicas,
        "regions": region or None,
        "gpu_type": gpu_type,
        "gpu_count": gpu_count,
        "engine": engine,
    }
    if (instance is None) == (launch is None):
        raise typer.BadParameter("give exactly one of --instance and --launch.", param_hint="--instance")
    if instance is not None and any([*list(wanted.values())[1:], max_adapters, max_rank, on_demand]):
        raise typer.BadParameter(
            "an instance's options are fixed at its launch: use --launch.", param_hint="--instance"
        )
    with session(ctx) as client:
        if instance is not None:
            begun = client.adapters.deploy_attach(ref, instance)
        else:
            begun = client.adapters.deploy_launch(ref, model=launch, **wanted)
            _wait_running(client, begun, no_wait, timeout)
        _settle(client, ref, [begun], no_wait, timeout, as_json)


def attach(
    ctx: typer.Context,
    ref: Ref,
    instance: InstanceId,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT_S,
    as_json: Json = False,
) -> None:
    """Attach an adapter to a running instance; it keeps its slot until you detach it."""
    with session(ctx) as client:
        _settle(client, ref, [client.adapters.attach(ref, instance)], no_wait, timeout, as_json)


def detach(
    ctx: typer.Context,
    ref: Ref,
    instance: InstanceId,
    force: Annotated[bool, typer.Option("--force", help="Cut requests in flight off at once.")] = False,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT_S,
    as_json: Json = False,
) -> None:
    """Detach an adapter: requests in flight finish, then its slot is free. It stays registered."""
    from pillion.cli import output, progress

    with session(ctx) as client:
        detached = client.adapters.detach(ref, instance, force=force)
        if not no_wait:
            with progress.steps(f"detaching {ref}") as told:
                client.adapters.wait_gone(ref, instance, timeout=timeout, on_progress=told)
    if as_json:
        output.print_json(detached.raw)
    else:
        output.note(f"{'detaching' if no_wait else 'detached'} {ref} from instance {instance}")


def move(
    ctx: typer.Context,
    ref: Ref,
    source: Annotated[int, typer.Argument(metavar="FROM", min=1, help="The instance it leaves.")],
    target: Annotated[int, typer.Argument(metavar="TO", min=1, help="The instance that takes it.")],
    no_wait: NoWait = False,
    timeout: Timeout = WAIT_S,
    as_json: Json = False,
) -> None:
    """Move an adapter to another instance without failing a request."""
    with session(ctx) as client:
        moved = client.adapters.move(ref, source, target)
        _settle(client, ref, [moved], no_wait, timeout, as_json)


def load(
    ctx: typer.Context,
    ref: Ref,
    pin: Annotated[bool, typer.Option("--pin", help="Never evict it to make room.")] = False,
    ttl: Annotated[
        float | None, typer.Option("--ttl", min=1, metavar="SECONDS", help="Unload it after this.")
    ] = None,
    session_key: Annotated[str | None, typer.Option("--session", help="Ends with this session.")] = None,
    backend: Backends = None,
    no_wait: NoWait = False,
    timeout: Timeout = WAIT_S,
    as_json: Json = False,
) -> None:
    """Load an adapter into the engines where its base runs; room is made by evicting what is not held."""
    with session(ctx) as client:
        begun = client.adapters.load(
            ref, backends=backend or None, pin=pin, ttl_seconds=ttl, session_key=session_key, wait=False
        )
        _settle(client, ref, begun, no_wait, timeout, as_json)


def unload(ctx: typer.Context, ref: Ref, backend: Backends = None, as_json: Json = False) -> None:
    """Unload an adapter, its pin too. One that is attached is detached instead."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(
            client.adapters.unload(ref, backends=backend or None), columns.ATTACHMENTS, as_json
        )


def end_session(
    ctx: typer.Context,
    session_key: Annotated[str, typer.Argument(help="As given to `load --session`.")],
    as_json: Json = False,
) -> None:
    """Unload all that was loaded with a session key."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.adapters.end_session(session_key), columns.ATTACHMENTS, as_json)


def warmup(
    ctx: typer.Context,
    refs: Annotated[list[str], typer.Argument(metavar="REF...", help="Adapters: ids, names or row ids.")],
    as_json: Json = False,
) -> None:
    """Begin to load adapters where their bases run, unpinned, without waiting."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.adapters.warmup(refs), columns.ATTACHMENTS, as_json)


def status(ctx: typer.Context, as_json: Json = False) -> None:
    """Show what is loaded where: each instance's slots and the adapters in them."""
    from pillion.cli import output

    with session(ctx) as client:
        backends = list(client.adapters.status())
    if as_json:
        output.print_records(backends, [], as_json)
        return
    titles = [
        "instance",
        "model",
        "slots_used",
        "adapter",
        "state",
        "pinned",
        "last_used",
        "expires",
        "error",
    ]
    rows = []
    for backend in backends:
        head = [str(backend.instance_id), backend.model, f"{backend.used}/{backend.slots}"]
        rows += [[*head, *_slot(adapter)] for adapter in backend.adapters] or [head + [""] * 6]
    output.print_rows(titles, [[output.plain(cell) for cell in row] for row in rows])


def eligible(ctx: typer.Context, ref: Ref, as_json: Json = False) -> None:
    """List the instances and whether each can take the adapter; if not, why."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.adapters.eligible_instances(ref), columns.ELIGIBLE, as_json)


def explain(ctx: typer.Context, ref: Ref, as_json: Json = False) -> None:
    """Tell where an adapter should be, where it is, why not, and what happens next."""
    from pillion.cli import explained, output

    with session(ctx) as client:
        found = client.adapters.explain(ref)
    if as_json:
        output.print_json(found.raw)
    else:
        explained.show(found)


def add_to(app: typer.Typer) -> None:
    for command in (
        deploy,
        attach,
        detach,
        move,
        load,
        unload,
        end_session,
        warmup,
        status,
        eligible,
        explain,
    ):
        app.command(command.__name__.replace("_", "-"))(command)


def _wait_running(client: Pillion, begun: Attachment, no_wait: bool, timeout: float) -> None:
    from pillion.cli import output, progress

    output.note(f"instance {begun.instance_id} is launching")
    if not no_wait:
        with progress.steps(f"instance {begun.instance_id}") as told:
            client.instances.wait_running(begun.instance_id, timeout=timeout, on_progress=told)


def _settle(
    client: Pillion, ref: str, begun: list[Attachment], no_wait: bool, timeout: float, as_json: bool
) -> None:
    """Wait until each is ready, unless told not to, and print them: as JSON the one, or the list where there are more."""
    from pillion.cli import columns, output, progress

    if not no_wait:
        with progress.steps(f"loading {ref}") as told:
            begun = [
                client.adapters.wait_ready(ref, a.instance_id, timeout=timeout, on_progress=told)
                for a in begun
            ]
    if len(begun) == 1:
        output.print_record(begun[0], columns.ATTACHMENTS, as_json)
    else:
        output.print_records(begun, columns.ATTACHMENTS, as_json)


def _slot(adapter: dict[str, Any]) -> list[str]:
    from pillion.cli.output import utc

    error = adapter.get("error") or {}
    return [
        str(adapter.get("name") or adapter.get("adapter_id") or ""),
        str(adapter.get("state") or ""),
        "yes" if adapter.get("pinned") else "no",
        utc(adapter.get("last_used")) or "",
        utc(adapter.get("expires_at")) or "",
        str(error.get("message") or ""),
    ]
