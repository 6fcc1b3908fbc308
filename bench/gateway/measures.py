"""What is measured of a system: each measure runs the load generator once and gives numbers of one round."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from systems import HERE, LOAD_CORE, SYSTEM_CORE, UPSTREAM_CORE, System

Numbers = dict[str, Any]


@dataclass
class Bench:
    """`mock`: its process id. `direct`: what going past every system took in this round."""

    upstream: str
    mock: int
    direct: dict[str, Numbers]

    def load(self, system: System, mode: str, *arguments: object) -> Numbers:
        argv = [
            *(sys.executable, str(HERE / "load.py"), "--url", system.url, "--mode", mode),
            *("--cores", str(UPSTREAM_CORE), str(LOAD_CORE), str(SYSTEM_CORE)),
            *("--core", str(LOAD_CORE), "--key", system.key, "--upstream", str(self.mock)),
            *(["--targets", str(system.targets)] if system.targets else []),
            *(word for pid in system.pids for word in ("--watch", str(pid))),
            *map(str, arguments),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=180)
        if done.returncode:
            return {"failed": 1, "failure": (done.stderr or done.stdout).strip()[-300:]}
        return dict(json.loads(done.stdout))

    def mock_says(self, path: str, method: str = "GET") -> Numbers:
        asked = urllib.request.Request(f"{self.upstream}/mock/{path}", method=method, data=_body(method))
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return dict(json.loads(answer.read()))


def _body(method: str) -> bytes | None:
    return b"{}" if method == "POST" else None


def rps(bench: Bench, system: System) -> Numbers:
    """32 connections in a closed loop, 1 KB in and out."""
    found = bench.load(system, "requests", "--connections", 32, "--seconds", 3)
    if found.get("requests"):
        found["cpu_us_per_request"] = round(1e6 * found["cpu_s"] / found["requests"], 1)
    return found


def latency(bench: Bench, system: System) -> Numbers:
    """One connection; added is what it takes over going to the mock at once in the same round."""
    found = bench.load(system, "requests", "--connections", 1, "--seconds", 2)
    direct = bench.direct.get("latency")
    if direct and "p50" in found:
        for at in ("p50", "p99"):
            found[f"added_{at}_us"] = round(found[at] - direct[at], 1)
    return found


def streams(bench: Bench, system: System) -> Numbers:
    """400 streams of 50 events a second, all open in the window; processor time for each event, and what was lost."""
    count = system.streams
    found = bench.load(
        *(system, "streams", "--connections", count, "--events", 400, "--rate", 50),
        *("--ramp", 2, "--window", 5),
    )
    if found.get("events"):
        found["cpu_us_per_event"] = round(1e6 * found["cpu_s"] / found["events"], 1)
        found["lost"] = count - found["whole"]
        found["streams"] = count
    return found


def ttft(bench: Bench, system: System) -> Numbers:
    """200 streams of a second each, again and again: time to the first event of those that begin in the window."""
    count = min(200, system.streams)
    found = bench.load(
        *(system, "streams", "--connections", count, "--events", 50, "--rate", 50),
        *("--ramp", 1, "--seconds", 3),
    )
    if found.get("ttft_ms"):
        found["ttft_p50_ms"] = found["ttft_ms"]["p50"]
    return found


def leave(bench: Bench, system: System) -> Numbers:
    """200 clients that leave in the middle of a stream: ms until the mock's connection is closed."""
    bench.mock_says("reset", "POST")
    count = min(200, system.streams)
    found = bench.load(
        *(system, "leave", "--connections", count, "--events", 400, "--rate", 50, "--ramp", 2),
    )
    left = found.pop("left", {})
    deadline = time.monotonic() + 3
    while True:
        cut = bench.mock_says("stats")["cut"]
        if len(cut) >= len(left) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    took = sorted(1000 * (cut[number] - at) for number, at in left.items() if number in cut)
    found["left"], found["never_closed"] = len(left), len(left) - len(took)
    if took:
        found["leave_p50_ms"] = round(took[len(took) // 2], 2)
        found["leave_p99_ms"] = round(took[int(len(took) * 0.99)], 2)
    return found


def stall(bench: Bench, system: System) -> Numbers:
    """100 readers that never read beside 100 that do: memory of each, and the others' gaps."""
    found = bench.load(
        *(system, "stall", "--connections", 100, "--stalled", 100, "--events", 100, "--rate", 50),
        *("--seconds", 3),
    )
    if "alone" in found:
        found["stalled_kib_each"] = round(found["bytes_each"] / 1024, 1)
        found["gap_p99_alone_ms"] = found["alone"]["gap_ms"]["p99"]
        found["gap_p99_filling_ms"] = found["filling"]["gap_ms"].get("p99", 0.0)
        found["gap_p99_beside_ms"] = found["beside"]["gap_ms"]["p99"]
    return found


MEASURES: dict[str, Callable[[Bench, System], Numbers]] = {
    "rps": rps,
    "latency": latency,
    "streams": streams,
    "ttft": ttft,
    "leave": leave,
    "stall": stall,
}
# What going to the mock directly is compared with.
DIRECT = ("rps", "latency", "ttft", "streams")


def answers(system: System) -> bool:
    """Whether it answers a request as it should by now."""
    key, model = system.key, "mock"
    if system.targets is not None:
        if not system.targets.exists():
            return False
        key, model = system.targets.read_text().partition("\n")[0].split("\t")
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    asked = urllib.request.Request(
        f"{system.url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json", "authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return answer.status == 200 and json.loads(answer.read())["object"] == "chat.completion"
    except (urllib.error.URLError, ConnectionError, TimeoutError, ValueError):
        return False
