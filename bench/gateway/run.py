"""The gateway beside what its users could put there instead, on one core each.

    make bench-gateway                                    all of it, about 15 minutes
    python bench/gateway/run.py --rounds 1 --append       one round more, on top of what is in the results
    python bench/gateway/run.py --only pillion --measure rps --rounds 1

    python bench/gateway/run.py --shared                  on two or three processors

A mock upstream has one core, the load generator another, the system under test a third; the rest is on the fourth.
`--shared`: all but the system under test share one core, which the results say when it was too busy.
Rounds are interleaved: each measures every system once, and going to the mock directly, which added latency is over.
Medians of the rounds are printed and written to bench/results/gateway.json. See load.py, upstream.py to use those alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from measures import DIRECT, MEASURES, Bench, Numbers, answers
from report import Results
from systems import (
    CORES,
    HERE,
    REST_CORE,
    SYSTEMS,
    UPSTREAM_CORE,
    MissingError,
    Place,
    System,
    free_port,
)

RESULTS = HERE.parent / "results" / "gateway.json"
START_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=SYSTEMS, help="this system (more than once)")
    parser.add_argument("--measure", action="append", choices=MEASURES, help="this measure (more than once)")
    parser.add_argument(
        "--append", action="store_true", help="keep the rounds that are in the results already"
    )
    parser.add_argument("--shared", action="store_true", help="run on fewer processors, from two on")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    here = os.cpu_count() or 1
    needed = 2 if options.shared and here < CORES else CORES
    if here < needed or not set(range(needed)) <= os.sched_getaffinity(0):
        sys.exit(
            f"error: this bench needs {CORES} processors of its own, or with --shared 2; here are {here}"
        )
    os.sched_setaffinity(0, {REST_CORE})
    names, measures = options.only or list(SYSTEMS), options.measure or list(MEASURES)
    results = Results.read(options.out) if options.append or options.only or options.measure else Results()
    if not options.append:
        results.forget(names, measures)
    results.machine = machine()
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as scratch:
        run(options.rounds, options.only, measures, results, Path(scratch))
    results.write(options.out)
    print(results.table())


def run(rounds: int, asked: list[str] | None, measures: list[str], results: Results, scratch: Path) -> None:
    port = free_port()
    place = Place(f"http://127.0.0.1:{port}", scratch)
    try:
        mock = place.spawn([sys.executable, HERE / "upstream.py", "--port", str(port)], UPSTREAM_CORE)
        direct = System("direct", place.upstream, mock)
        wait_for(direct, place)
        running = start(asked or list(SYSTEMS), place, results)
        for number in range(1, rounds + 1):
            bench = Bench(place.upstream, mock.pid, {})
            for measure in measures:
                if measure in DIRECT:
                    bench.direct[measure] = one(bench, direct, measure, number, results)
                for system in running:
                    if measure in wanted(system.name, asked):
                        system.signal(signal.SIGCONT)
                        try:
                            one(bench, system, measure, number, results)
                        finally:
                            system.signal(signal.SIGSTOP)
    finally:
        place.end()


def wanted(name: str, asked: list[str] | None) -> Iterable[str]:
    """Of the gateway with ten adapters only what says whether the many cost anything.

    Readers that stall only of Pillion, unless it is asked for by name: a system without back-pressure takes gigabytes.
    """
    if asked:
        return MEASURES
    if name == "pillion-ten":
        return ("rps",)
    return MEASURES if name == "pillion" else [m for m in MEASURES if m != "stall"]


def start(names: list[str], place: Place, results: Results) -> list[System]:
    """Starts them one after the other and leaves each stopped."""
    running = []
    for name in names:
        began = time.monotonic()
        try:
            system = SYSTEMS[name](place)
            wait_for(system, place)
        except MissingError as missing:
            results.missing[name] = str(missing)
            say(f"{name}: missing: {missing}")
            continue
        results.missing.pop(name, None)
        results.versions[name] = system.version
        running.append(system)
        say(f"{name} {system.version} answers after {time.monotonic() - began:.1f} s")
        time.sleep(0.5)
        system.signal(signal.SIGSTOP)
    return running


def wait_for(system: System, place: Place) -> None:
    """Raises `MissingError` where it does not come."""
    deadline = time.monotonic() + START_S
    while not answers(system):
        if system.process.poll() is not None:
            raise MissingError(
                f"it ended with status {system.process.returncode}: {place.last_words(system.process)}"
            )
        if time.monotonic() > deadline:
            raise MissingError(f"no answer within {START_S:.0f} s: {place.last_words(system.process)}")
        time.sleep(0.1)


def one(bench: Bench, system: System, measure: str, number: int, results: Results) -> Numbers:
    found = MEASURES[measure](bench, system)
    results.add(system.name, measure, found)
    shown = {k: v for k, v in found.items() if not isinstance(v, dict) and v not in ("", 0)}
    say(f"{number} {measure:<8} {system.name:<14} " + " ".join(f"{k}={v}" for k, v in shown.items()))
    return found


def machine() -> dict[str, Any]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    kernel = subprocess.run(["uname", "-r"], capture_output=True, text=True).stdout.strip()
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "kernel": kernel,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
