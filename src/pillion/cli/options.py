"""Options and arguments that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the server's JSON instead of a table.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is still to come.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait; it goes on by itself.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Wait at most this many seconds.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most this many. [default: all]")]
Ref = Annotated[str, typer.Argument(metavar="REF", help="An adapter: its id adp_…, its name or its row id.")]
InstanceId = Annotated[int, typer.Argument(metavar="INSTANCE", min=1, help="An instance's id.")]
Base = Annotated[str, typer.Option("--base", "-b", help="The base model that the adapter was trained on.")]
BoundRegion = Annotated[str | None, typer.Option("--region", help="Serve it in this region only.")]

Regions = Annotated[list[str] | None, typer.Option("--region", help="A region to run in; may be repeated.")]
Replicas = Annotated[
    int | None,
    typer.Option("--replicas", min=1, help="Replicas. [default: 2 where two regions exist, else 1]"),
]
GpuType = Annotated[str | None, typer.Option("--gpu-type", help="[default: the cheapest that fits the base]")]
GpuCount = Annotated[
    int | None, typer.Option("--gpu-count", min=1, help="GPUs for each replica. [default: 1]")
]
Engine = Annotated[str | None, typer.Option("--engine", help="vllm or sim. [default: the model's]")]
MaxAdapters = Annotated[
    int | None, typer.Option("--max-adapters", min=1, help="Slots for adapters, at most 64. [default: 16]")
]
MaxRank = Annotated[
    int | None, typer.Option("--max-rank", min=1, help="The highest rank it takes. [default: 64]")
]
OnDemand = Annotated[bool, typer.Option("--on-demand", help="Load adapters when a request asks for them.")]
EngineOptions = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An engine option; may be repeated.")
]


def engine_options(given: list[str] | None) -> dict[str, Any] | None:
    """`key=value` pairs; values are JSON where they can be read as such, else text."""
    import json

    found: dict[str, Any] = {}
    for pair in given or []:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE.", param_hint="--option")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found or None


def lora_fields(max_adapters: int | None, max_rank: int | None, on_demand: bool) -> dict[str, Any]:
    """The `lora` of a launch with LoRA on."""
    wanted = {"max_adapters": max_adapters, "max_rank": max_rank, "on_demand": on_demand or None}
    return {"enabled": True, **{name: value for name, value in wanted.items() if value is not None}}
