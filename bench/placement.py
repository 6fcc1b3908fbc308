"""Where adapters are kept: resident hits and evenness of a whole Pillion, beside what balancers and caches do otherwise.

    make bench-placement       1,000 adapters, 8 replicas with 16 slots each, popularity by Zipf's law, fixed and drifting

`pillion serve` runs with a shared pool of simulated engines: gateway, control, agents, loads, proofs and evictions are
real, the engines answer without a model. A hit is an answer that waited for no load. The policies beside it are played by
`pillion simulate` over the same requests. The first part of every trace fills the caches and is not counted.
Written to bench/results/placement.json: `policies.<name>.{hit_static, hit_drift, max_over_mean}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
from safetensors.numpy import save_file

from pillion.gateway.balance import Balance
from pillion.sdk import Pillion
from pillion.simulate.costs import EngineCosts
from pillion.simulate.generate import Traffic, generate
from pillion.simulate.report import Fleet, simulate
from pillion.simulate.trace import Trace

RESULTS = Path(__file__).resolve().parent / "results" / "placement.json"
REPLICAS, SLOTS, PER_ACCOUNT = 8, 16, 200
DRIFT = 0.02
PEERS = ("round-robin-lru", "hashing-lru")
BASE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Called:
    """How an adapter is called, and by whose key."""

    key: str
    model: str


@dataclass
class Played:
    """Of the counted part: requests, those answered without a load, by replica, and what was no answer."""

    requests: int = 0
    hits: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.by_replica: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    @property
    def hit_rate(self) -> float:
        return self.hits / self.requests

    @property
    def max_over_mean(self) -> float:
        return max(self.by_replica.values()) * REPLICAS / sum(self.by_replica.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--warm-up", type=float, default=0.5, help="the part of a trace that is not counted")
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--results", type=Path, default=RESULTS)
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what it started ends with it
    traces = {
        name: generate(Traffic(wanted.adapters, wanted.requests, wanted.rate, 1.0, drift), wanted.seed)
        for name, drift in (("static", 0.0), ("drift", DRIFT))
    }
    with tempfile.TemporaryDirectory() as scratch, server(Path(scratch)) as url:
        called = adapters(url, Path(scratch), wanted.adapters)
        played = {}
        for name, trace in traces.items():
            say(f"{name}: {len(trace)} requests")
            played[name] = asyncio.run(play(url, called, trace, wanted.warm_up))
            say(
                f"  {played[name].hit_rate:.1%} hits, hottest {played[name].max_over_mean:.2f}, "
                f"{wanted.requests / played[name].seconds:.0f} req/s, failed: {dict(played[name].failed)}"
            )
    report(wanted, traces, played)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def server(scratch: Path) -> Iterator[str]:
    """A Pillion with the pool, in a data directory that ends with it."""
    model = scratch / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(BASE))
    config = scratch / "pillion.toml"
    config.write_text(
        f'[[regions]]\nname = "local"\ngpus = {{cpu = {REPLICAS}}}\n\n'
        f'[[models]]\nname = "tiny"\nsource = "path:{model}"\nengine = "sim"\n\n'
        f'[[pools]]\nmodel = "tiny"\nreplicas = {REPLICAS}\nmax_adapters = {SLOTS}\n'
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "pillion", "serve", "--config", str(config)]
    argv += ["--data-dir", str(scratch / "data"), "--port", str(port)]
    with (scratch / "serve.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=os.environ, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: httpx.get(f"{url}/readyz").status_code == 200, scratch / "serve.log")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def until(true: Any, log: Path, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if true():
                return
        except (httpx.HTTPError, OSError):
            pass
        time.sleep(0.1)
    raise SystemExit(f"it did not come up:\n{log.read_text()[-4000:]}")


def adapters(url: str, scratch: Path, count: int) -> list[Called]:
    """Uploads them, for as many accounts as their caps ask for, and waits for the pool."""
    admin = (scratch / "data" / "admin-key").read_text().strip()
    tenants = [tenant(url, admin, n) for n in range((count + PER_ACCOUNT - 1) // PER_ACCOUNT)]
    say(f"uploading {count} adapters")

    def upload(number: int) -> Called:
        client, key = tenants[number % len(tenants)]
        path = weights(scratch / f"adapter-{number}.safetensors", number)
        made = client.adapters.upload(f"a{number}", "tiny", path)
        path.unlink()
        return Called(key, made.aliases[0])

    with ThreadPoolExecutor(8) as pool:
        called = list(pool.map(upload, range(count)))
    client, _ = tenants[0]
    until(
        lambda: [i for i in client.instances.list() if i.state == "running"] or all_ready(url, called[0]),
        scratch / "serve.log",
    )
    return called


def all_ready(url: str, called: Called) -> bool:
    answer = httpx.post(
        f"{url}/v1/chat/completions",
        headers={"authorization": f"Bearer {called.key}"},
        json={"model": called.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    )
    return answer.status_code == 200


def tenant(url: str, admin: str, number: int) -> tuple[Pillion, str]:
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {admin}"}) as http:
        account = http.post(
            "/v1/admin/accounts", json={"name": f"tenant-{number}", "tier": "dedicated"}
        ).json()
        scopes = {"name": "bench", "scopes": ["inference", "manage"]}
        made = http.post(f"/v1/admin/accounts/{account['id']}/keys", json=scopes).json()
    return Pillion(url, made["key"]), made["key"]


def weights(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{stem}.lora_A.weight": rng.normal(size=(1, 32)).astype(np.float32),
        f"{stem}.lora_B.weight": rng.normal(size=(32, 1)).astype(np.float32),
    }
    save_file(tensors, path)
    return path


async def play(url: str, called: Sequence[Called], trace: Trace, warm_up: float) -> Played:
    """The requests at the times of the trace."""
    found, start = Played(), int(len(trace) * warm_up)
    began = time.monotonic()

    async def request(http: aiohttp.ClientSession, number: int) -> None:
        status, replica, hit = await ask(http, url, called[trace.adapter[number]])
        if number < start:
            return
        found.requests += 1
        found.hits += hit
        if status == 200:
            found.by_replica[replica] += 1
        else:
            found.failed[str(status)] += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as under_way:
        for number, at in enumerate(trace.at):
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            under_way.create_task(request(http, number))
    found.seconds = time.monotonic() - began
    return found


async def ask(http: aiohttp.ClientSession, url: str, called: Called) -> tuple[int, str, bool]:
    """Status, replica, and whether it waited for no load."""
    body = {"model": called.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    headers = {"authorization": f"Bearer {called.key}"}
    async with http.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
        await answer.read()
        hit = answer.status == 200 and "x-pillion-cold" not in answer.headers
        return answer.status, answer.headers.get("x-pillion-replica", ""), hit


def report(wanted: argparse.Namespace, traces: dict[str, Trace], played: dict[str, Played]) -> None:
    say("simulating the others")
    fleet = Fleet(REPLICAS, SLOTS, EngineCosts())
    simulated = {
        name: simulate(trace, fleet, lambda clock: Balance(clock), PEERS, wanted.warm_up)
        for name, trace in traces.items()
    }
    policies: dict[str, dict[str, Any]] = {
        "pillion": {
            "hit_static": played["static"].hit_rate,
            "hit_drift": played["drift"].hit_rate,
            "max_over_mean": max(one.max_over_mean for one in played.values()),
            "failed": sum(sum(one.failed.values()) for one in played.values()),
            "measured": True,
        }
    }
    for name in PEERS:
        static, drift = (simulated[kind].policies[name] for kind in ("static", "drift"))
        policies[name] = {
            "hit_static": static.hit_rate,
            "hit_drift": drift.hit_rate,
            "max_over_mean": max(static.max_over_mean, drift.max_over_mean),
            "failed": static.refused + drift.refused,
            "measured": False,
        }
    found = {
        "machine": {
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "wanted": vars(wanted) | {"replicas": REPLICAS, "slots": SLOTS, "drift": DRIFT},
        "belady": {kind: simulated[kind].belady for kind in traces},
        "requests_per_s": {kind: wanted.requests / one.seconds for kind, one in played.items()},
        "policies": policies,
    }
    wanted.results.parent.mkdir(exist_ok=True)
    wanted.results.write_text(json.dumps(found, indent=2, default=str) + "\n")
    print(f"| {'policy':18} | hits, fixed | hits, drifting | hottest / mean | failed |")
    for name, row in policies.items():
        hits = f"{100 * row['hit_static']:9.1f} % | {100 * row['hit_drift']:12.1f} %"
        print(f"| {name:18} | {hits} | {row['max_over_mean']:14.2f} | {row['failed']:6} |")
    print(
        f"| {'belady, one pool':18} | {100 * found['belady']['static']:9.1f} % | {100 * found['belady']['drift']:12.1f} % |"
    )
    print(f"written to {wanted.results}")


if __name__ == "__main__":
    main()
