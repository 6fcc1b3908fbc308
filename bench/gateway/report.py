"""What the rounds found: kept, merged, and told as medians."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from systems import LOAD_CORE, UPSTREAM_CORE

BUSY = 0.9
OTHERS_MOST = 0.05
Numbers = dict[str, Any]

# (heading, key, measure it comes from, decimals)
COLUMNS = (
    ("req/s, 32 connections", "rps", "rps", 0),
    ("CPU µs per request", "cpu_us_per_request", "rps", 0),
    ("added p50 µs", "p50_added_us", "latency", 0),
    ("added p99 µs", "p99_added_us", "latency", 0),
    ("TTFT p50 ms, 200 streams", "ttft_p50_ms", "ttft", 2),
    ("CPU µs per event", "cpu_us_per_event", "streams", 1),
    ("streams not whole", "lost", "streams", 0),
)
# Where a number stands in what a measure found, if not under its own name.
FOUND_AS = {"p50_added_us": "added_p50_us", "p99_added_us": "added_p99_us"}
OTHERS = {
    "leave_p50_ms": "leave",
    "leave_p99_ms": "leave",
    "never_closed": "leave",
    "stalled_kib_each": "stall",
    "gap_p99_alone_ms": "stall",
    "gap_p99_filling_ms": "stall",
    "gap_p99_beside_ms": "stall",
    "fill_s": "stall",
}


@dataclass
class Results:
    """`rounds[system][measure]` has what each round found."""

    machine: Numbers = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    rounds: dict[str, dict[str, list[Numbers]]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        if not path.exists():
            return cls()
        kept = json.loads(path.read_text())
        return cls(**{name: kept[name] for name in ("machine", "versions", "missing", "rounds")})

    def forget(self, systems: list[str], measures: list[str]) -> None:
        """Those that are measured anew. What stands beside them is of another run then, and the table says how many."""
        for system in [*systems, "direct"]:
            for measure in measures:
                self.rounds.get(system, {}).pop(measure, None)

    def add(self, system: str, measure: str, found: Numbers) -> None:
        self.rounds.setdefault(system, {}).setdefault(measure, []).append(found)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"systems": self.systems(), "warnings": self.warnings(), **asdict(self)}, indent=1)
        )

    def systems(self) -> dict[str, Numbers]:
        """Medians over the rounds, by system."""
        return {system: self._medians(measures) for system, measures in self.rounds.items()}

    def _medians(self, measures: dict[str, list[Numbers]]) -> Numbers:
        wanted = {key: measure for _, key, measure, _ in COLUMNS} | OTHERS
        medians: Numbers = {}
        for key, measure in wanted.items():
            values = [
                found[FOUND_AS.get(key, key)]
                for found in measures.get(measure, ())
                if FOUND_AS.get(key, key) in found
            ]
            if values:
                medians[key] = round(statistics.median(values), 3)
        medians["rounds"] = max((len(rounds) for rounds in measures.values()), default=0)
        return medians

    def warnings(self) -> list[str]:
        told = []
        for system, measures in self.rounds.items():
            for measure, rounds in measures.items():
                who = f"{system}, {measure}"
                for part, name in (("busy", "the load generator"), ("upstream_busy", "the mock upstream")):
                    share = max((found.get(part, 0) for found in rounds), default=0)
                    if share >= BUSY:
                        told.append(f"{who}: {name} was {share:.0%} busy: it was measured, not the system")
                both = max(
                    (found.get("busy", 0) + found.get("upstream_busy", 0) for found in rounds), default=0
                )
                if LOAD_CORE == UPSTREAM_CORE and both >= BUSY:
                    told.append(
                        f"{who}: generator and mock took {both:.0%} of their core: they were measured too"
                    )
                others = max((found.get("others", 0) for found in rounds), default=0)
                if others > OTHERS_MOST:
                    told.append(
                        f"{who}: other processes took {others:.0%} of a core: the machine was not quiet"
                    )
                failed = sum(found.get("failed", 0) for found in rounds)
                if failed:
                    why = next(found["failure"] for found in rounds if found.get("failed"))
                    told.append(f"{who}: {failed} requests failed, first: {why[:200]}")
        return told

    def table(self) -> str:
        systems = self.systems()
        heads = ["system", *(heading for heading, *_ in COLUMNS), "rounds"]
        lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
        for name, found in systems.items():
            shown = [f"{found[key]:,.{digits}f}" if key in found else "–" for _, key, _, digits in COLUMNS]
            label = " ".join(filter(None, (name, self.versions.get(name))))
            lines.append(f"| {label} | {' | '.join(shown)} | {found['rounds']} |")
        lines += ["", *self._others(systems), *self._ratios(systems)]
        lines += [f"missing: {name}: {why}" for name, why in self.missing.items()]
        lines += [f"warning: {text}" for text in self.warnings()]
        return "\n".join(lines)

    def _others(self, systems: dict[str, Numbers]) -> list[str]:
        lines = []
        for name, found in systems.items():
            told = ", ".join(f"{key} {found[key]:g}" for key in OTHERS if key in found)
            if told:
                lines.append(f"{name}: {told}")
        return lines

    def _ratios(self, systems: dict[str, Numbers]) -> list[str]:
        """What the numbers are to be, as ratios of one run."""
        ours, rust = systems.get("pillion", {}), systems.get("vllm-router", {})
        lines = []
        for key, goal in (("rps", "≥ 1.8"), ("cpu_us_per_event", "≤ 1"), ("ttft_p50_ms", "≤ 0.5")):
            if ours.get(key) and rust.get(key):
                lines.append(f"{key}: {ours[key] / rust[key]:.2f} × vllm-router (goal {goal})")
        ten = systems.get("pillion-ten", {}).get("rps")
        if ten and ours.get("rps"):
            lines.append(f"rps with 100,000 adapters: {ours['rps'] / ten:.3f} of that with ten (goal ≥ 0.95)")
        peers = [n for n in systems if n not in ("direct", "pillion", "pillion-ten", "nginx")]
        for key in ("p50_added_us", "p99_added_us"):
            best = min(((systems[n][key], n) for n in peers if key in systems[n]), default=None)
            if best and key in ours:
                lines.append(f"{key}: {ours[key]:.0f}, best peer {best[1]} {best[0]:.0f} (goal: no more)")
        return lines
