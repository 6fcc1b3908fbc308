"""Several workers of one gateway behind one port: what one loses, the others do not notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from pillion.sdk import Pillion
from pillion.sdk.errors import UnavailableError

from .site import DEADLINE_S, Site, adapter_file, ask, running, until

WORKERS = 2
STREAMS = 12


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with running(Site(tmp_path), "--workers", str(WORKERS)) as made:
        until(lambda: len(made.processes("gateway")) == WORKERS, "all workers")
        yield made


@dataclass
class Stream:
    """One that is read on a connection of its own. `worker`: who answers, by what its request ids begin with."""

    url: str
    key: str
    tokens: int
    worker: str = ""
    whole: bool = False
    begun: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        body = {"model": "slow", "prompt": "hi", "max_tokens": self.tokens, "stream": True}
        headers = {"authorization": f"Bearer {self.key}"}
        last = ""
        try:
            with httpx.stream(
                "POST", f"{self.url}/v1/completions", json=body, headers=headers, timeout=60
            ) as answer:
                self.worker = answer.headers["x-request-id"][:20]
                for line in answer.iter_lines():
                    self.begun.set()
                    last = line or last
        except httpx.HTTPError:
            pass
        self.whole = last == "data: [DONE]"


@contextmanager
def streams(site: Site, tokens: int) -> Iterator[list[Stream]]:
    """That have all begun; read to their ends when the block is left."""
    made = [Stream(site.url, site.admin, tokens) for _ in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as pool:
        reading = [pool.submit(stream.read) for stream in made]
        for stream in made:
            assert stream.begun.wait(30)
        yield made
        for one in reading:
            one.result(DEADLINE_S)


def statuses(client: Pillion, count: int) -> Counter[str]:
    def enough() -> Counter[str] | None:
        found = list(client.usage.events(limit=1000))
        return Counter(event.status for event in found) if len(found) >= count else None

    return until(enough, f"{count} usage events") or Counter()


def answering(site: Site) -> set[str]:
    """Who answers, over many connections."""
    return {httpx.get(f"{site.url}/healthz").headers["x-request-id"][:20] for _ in range(40)}


def test_a_worker_that_is_killed_cuts_what_it_had_in_flight_and_nothing_else(site: Site) -> None:
    with site.client() as client:
        site.launch(client, "slow")
        assert len(until(lambda: answering(site) if len(answering(site)) == 2 else None, "both") or ()) == 2
        with streams(site, 150) as made:
            of_each = Counter(stream.worker for stream in made)
            killed = site.processes("gateway")[0]
            killed.kill()
        cut = Counter(stream.worker for stream in made if not stream.whole)
        assert len(of_each) == WORKERS
        assert len(cut) == 1
        ((worker, count),) = cut.items()
        assert count == of_each[worker]
        until(lambda: len(site.processes("gateway")) == WORKERS, "the worker again")
        until(lambda: len(answering(site)) == WORKERS, "an answer of each")
        ask(client, "slow")
        assert statuses(client, STREAMS + 1) == {"lost": count, "200": STREAMS - count + 1}


def test_what_two_replicas_died_of_at_one_worker_all_workers_refuse(site: Site, tmp_path: Path) -> None:
    with site.client() as client:
        instance = site.launch(client, regions=["eu-1", "us-1"], replicas=2)
        captain = client.adapters.upload("captain", "tiny", adapter_file(tmp_path, 1))
        client.adapters.attach("captain", instance)
        client.adapters.wait_ready("captain", instance)
        for engine in site.engines(instance):
            engine.go_wrong(crash_on="boom")
        with pytest.raises(UnavailableError, match="Two replicas were lost"):
            ask(client, captain.aliases[0], "boom")
        refusing: set[str] = set()

        def all_refuse() -> bool:
            body = {"model": captain.aliases[0], "prompt": "hi", "max_tokens": 1}
            headers = {"authorization": f"Bearer {site.admin}"}
            answer = httpx.post(f"{site.url}/v1/completions", json=body, headers=headers)
            if "quarantined" in answer.text:
                refusing.add(answer.headers["x-request-id"][:20])
            return len(refusing) == WORKERS

        until(all_refuse, "each worker refuses it")


def test_sigterm_drains_all_workers(site: Site) -> None:
    with site.client() as client:
        site.launch(client, "slow")
    with streams(site, 250) as made:
        assert site.process is not None
        site.process.send_signal(signal.SIGTERM)
        until(lambda: refused(site.url), "no more connections")
        assert site.process.poll() is None, "refused while it drains, not because it is gone"
    assert len({stream.worker for stream in made}) == WORKERS
    assert all(stream.whole for stream in made)
    assert site.process.wait(DEADLINE_S) == 0
    assert site.processes() == []


def test_a_revoked_key_is_refused_by_every_worker(site: Site) -> None:
    with site.client() as client:
        site.launch(client)
        made = client.keys.create("k", scopes=["inference"])
        with site.client(made.key) as other:
            ask(other, "tiny")
        client.keys.revoke(made.id)
        for _ in range(20):
            answer = httpx.get(f"{site.url}/v1/models", headers={"authorization": f"Bearer {made.key}"})
            assert answer.status_code == 401


def test_the_port_of_workers_is_taken(site: Site, tmp_path: Path) -> None:
    """Although sockets that share an address would let a second server of the same user join them."""
    for workers in ("1", "2"):
        argv = [
            "serve",
            "--port",
            str(site.port),
            "--data-dir",
            str(tmp_path / "other"),
            "--workers",
            workers,
        ]
        second = subprocess.run(
            [sys.executable, "-m", "pillion", *argv], capture_output=True, text=True, timeout=DEADLINE_S
        )
        assert second.returncode == 2
        assert f"cannot listen on 127.0.0.1:{site.port}" in second.stderr


def test_a_gateway_of_its_own_with_workers(own_site: Site, tmp_path: Path) -> None:
    """It joins the control of a server by its URLs; where its first process is killed, its workers end."""
    control = own_site.processes("control")[0]
    api, internal = (f"http://127.0.0.1:{port}" for port in listening(control))
    with own_site.client() as client:
        own_site.launch(client)
        token = client.admin.gateways.add("apart").token
    apart = Site(tmp_path / "apart")

    def begin(data: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "pillion", "gateway", "--workers", "2", "--port", str(apart.port)),
                *("--data-dir", str(data), "--control-url", api, "--internal-url", internal),
            ],
            env={**os.environ, "PILLION_JOIN_TOKEN": token or ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    process = begin(apart.data)
    try:
        until(lambda: len(answering(apart)) == WORKERS, "both workers")
        with Pillion(apart.url, own_site.admin) as client:
            until(lambda: ask(client, "tiny"), "an answer")
            assert [one.model for one in client.instances.list()] == ["tiny"]
        process.kill()
        process.wait()
        until(lambda: apart.processes() == [], "no process left")
        assert refused(apart.url)

        assert begin(tmp_path / "thief").wait(60) == 2, "the token was good once"
        process = begin(apart.data)  # with what it was given, though control was killed meanwhile
        own_site.processes("control")[0].kill()
        with Pillion(apart.url, own_site.admin) as client:
            until(lambda: ask(client, "tiny"), "an answer")
            until(lambda: len(list(client.usage.events())) >= 2, "its usage")
    finally:
        process.kill()
        process.wait()


def test_any_worker_tells_the_metrics_of_all(site: Site) -> None:
    with site.client() as client:
        site.launch(client)
        for _ in range(10):
            with site.client() as other:
                ask(other, "tiny")

    def served() -> dict[str, float]:
        found = {}
        for line in httpx.get(f"{site.url}/metrics").text.splitlines():
            if line.startswith("pillion_gateway_requests_total{") and 'kind="inference"' in line:
                labels, _, value = line.rpartition(" ")
                found[labels] = float(value)
        return found

    until(lambda: sum(served().values()) == 10, "the requests of all workers, whichever is asked")
    for _ in range(10):
        assert sum(served().values()) == 10
    assert {label.split('"')[1] for label in served()} <= {"worker-0", "worker-1"}


def listening(process: psutil.Process) -> list[int]:
    """The API's port comes first: its descriptor does."""
    found = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return [int(c.laddr.port) for c in sorted(found, key=lambda c: c.fd)][:2]


def refused(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz")
    except httpx.ConnectError:
        return True
    return False
