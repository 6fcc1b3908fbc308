"""`pillion simulate`: a fleet that does not exist, under traffic that is given or made up."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pillion.cli.output import on_terminal, print_rows
from pillion.gateway.balance import Balance
from pillion.simulate import costs as engine_costs
from pillion.simulate import plots, trace
from pillion.simulate.costs import CostsError, EngineCosts
from pillion.simulate.generate import Traffic, generate
from pillion.simulate.report import Fleet, Report, simulate
from pillion.simulate.trace import Trace, TraceError

TITLES = (
    "policy",
    "hits",
    "cold",
    "refused",
    "ttft p50",
    "ttft p99",
    "hottest",
    "loads",
    "evictions",
    "over time",
)


@dataclass(frozen=True)
class Wanted:
    """`traffic` is made up where there is no `trace`."""

    replicas: int
    slots: int
    traffic: Traffic
    seed: int
    warm_up: float
    policies: Sequence[str]
    trace: Path | None = None
    costs: Path | None = None
    save_trace: Path | None = None
    plot: Path | None = None
    as_json: bool = False


def run(wanted: Wanted) -> int:
    """Plays it and prints what came of it; the exit status."""
    try:
        costs = EngineCosts() if wanted.costs is None else engine_costs.read(wanted.costs)
        played = generate(wanted.traffic, wanted.seed) if wanted.trace is None else trace.read(wanted.trace)
        _save(played, wanted.save_trace)
        report = _simulate(wanted, played, costs)
        if wanted.plot is not None:
            plots.save(report, wanted.plot)
    except (TraceError, CostsError, plots.PlotError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _show(report, wanted.as_json)
    return 0


def _save(played: Trace, path: Path | None) -> None:
    if path is not None:
        try:
            trace.write(played, path)
        except OSError as error:
            raise TraceError(f"{path}: {error.strerror}") from error


def _simulate(wanted: Wanted, played: Trace, costs: EngineCosts) -> Report:
    from rich.console import Console

    console = Console(stderr=True)

    def chooser(clock: Callable[[], float]) -> Balance:
        return Balance(clock, random.Random(wanted.seed).random)  # noqa: S311 (a simulation)

    with console.status("simulating") as status:
        return simulate(
            played,
            Fleet(wanted.replicas, wanted.slots, costs),
            chooser,
            wanted.policies,
            wanted.warm_up,
            lambda name: status.update(f"simulating {name}"),
        )


def _show(report: Report, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.document(), indent=2 if on_terminal() else None))
        return
    rows = [
        (
            name,
            f"{100 * found.hit_rate:.1f} %",
            str(found.cold_starts),
            str(found.refused),
            f"{found.ttft_ms['p50']:.0f} ms",
            f"{found.ttft_ms['p99']:.0f} ms",
            f"{found.max_over_mean:.2f}",
            str(found.loads),
            str(found.evictions),
            plots.line(list(found.hits_over_time)),
        )
        for name, found in report.policies.items()
    ]
    bound = ("belady's bound", f"{100 * report.belady:.1f} %", *[""] * (len(TITLES) - 2))
    print_rows(TITLES, [*rows, bound])
