"""Flips, rollbacks and canaries under load: every answer is of the version that its header says, and of no other."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pillion.sdk import Pillion
from pillion.sdk.errors import ConflictError, PillionFailedError
from pillion.sdk.types import AdapterVersion

from .site import Site, adapter_file, ask, until

FLIPS = 1000 if os.environ.get("PILLION_TEST_FULL") else 50


class Asking:
    """One that asks for a model again and again, every other time as a stream, and keeps what is wrong."""

    def __init__(self, client: Pillion, url: str, model: str, digests: dict[str, str]) -> None:
        self._http = httpx.Client(base_url=url, headers=dict(client._transport._http.headers), timeout=30)
        self._model = model
        self._digests = digests
        self.wrong: list[str] = []
        self.versions: dict[str, int] = {}

    def ask(self, *, stream: bool = False) -> str:
        """The version that answered, which the text agrees with."""
        body = {"model": self._model, "prompt": "hi", "max_tokens": 4, "stream": stream}
        answer = self._http.post("/v1/completions", json=body)
        version = answer.headers.get("x-pillion-adapter-version", "")
        if answer.status_code != 200 or self._digests[version][:12] not in answer.text:
            self.wrong.append(f"{answer.status_code} {version} {answer.text[:300]}")
        self.versions[version] = self.versions.get(version, 0) + 1
        return version

    def until(self, ended: threading.Event) -> None:
        number = 0
        while not ended.is_set():
            try:
                self.ask(stream=number % 2 == 1)
            except Exception as error:
                self.wrong.append(repr(error))
            number += 1


@contextmanager
def asked_all_the_while(made: Callable[[], Asking], count: int = 4) -> Iterator[list[Asking]]:
    clients, ended = [made() for _ in range(count)], threading.Event()
    threads = [threading.Thread(target=client.until, args=(ended,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield clients
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def versions_of(client: Pillion, name: str) -> list[AdapterVersion]:
    return list(client.adapters.versions(name))


@pytest.mark.timeout(1800)
def test_flips_under_load(site: Site, client: Pillion, tmp_path: Path) -> None:
    """On two replicas that are full but for the surge slot."""
    instance = site.launch(client, slots=2, regions=["eu-1", "us-1"], replicas=2)
    made = client.adapters.upload("flips", "tiny", adapter_file(tmp_path, 1))
    beside = client.adapters.upload("beside", "tiny", adapter_file(tmp_path, 9))
    for adapter in (made, beside):
        client.adapters.attach(adapter.id, instance)
        client.adapters.wait_ready(adapter.id, instance)
    for seed in (2, 3):
        client.adapters.add_version("flips", adapter_file(tmp_path, seed), live=False)
    digests = {str(v.version): v.digest or "" for v in versions_of(client, "flips")}
    assert len(digests) == 3

    def asking() -> Asking:
        return Asking(client, site.url, made.aliases[0], digests)

    stale, own = [], asking()
    with asked_all_the_while(asking) as askers:
        for flip in range(FLIPS):
            if flip % 5 == 4:
                view = client.adapters.rollback("flips")
            else:
                view = client.adapters.make_live("flips", 1 + (flip + 1) % 3)
            if view.state != "live":
                view = client.adapters.wait_live("flips", view.version, timeout=60)
            if not view.unacknowledged and (answered := own.ask()) != str(view.version):
                stale.append((flip, view.version, answered))
    assert [wrong for asker in (*askers, own) for wrong in asker.wrong] == []
    assert stale == []
    assert min(sum(asker.versions.values()) for asker in askers) > 10
    assert {v for asker in askers for v in asker.versions} == {"1", "2", "3"}
    now = client.adapters.get("flips")
    assert now.digest == digests[str(now.version)]
    for engine in site.engines(instance):
        until(lambda engine=engine: len(engine.state()["adapters"]) == 2, "what was replaced is gone")  # type: ignore[misc]


def test_what_is_in_flight_finishes_on_its_version(site: Site, client: Pillion, tmp_path: Path) -> None:
    instance = site.launch(client, "slow", slots=1)
    made = client.adapters.upload("long", "slow", adapter_file(tmp_path, 1))
    client.adapters.attach(made.id, instance)
    client.adapters.wait_ready(made.id, instance)
    body = {"model": made.aliases[0], "prompt": "hi", "max_tokens": 100, "stream": True}
    http = httpx.Client(base_url=site.url, headers=dict(client._transport._http.headers), timeout=60)
    with http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.headers["x-pillion-adapter-version"] == "1"
        lines = answer.iter_lines()
        head = [next(lines) for _ in range(4)]
        view = client.adapters.add_version("long", adapter_file(tmp_path, 2))
        view = client.adapters.wait_live("long", view.version, timeout=60)
        assert (view.digest or "")[:12] in ask(client, made.aliases[0])
        text = "\n".join([*head, *lines])
    assert (made.digest or "")[:12] in text
    assert " t100" in text
    assert text.rstrip().endswith("data: [DONE]")
    [engine] = site.engines(instance)
    until(lambda: len(engine.state()["adapters"]) == 1, "the old one is gone", timeout=20)


def test_one_after_another_on_a_full_instance(site: Site, client: Pillion, tmp_path: Path) -> None:
    instance = site.launch(client, slots=3)
    for number in range(3):
        client.adapters.upload(f"n{number}", "tiny", adapter_file(tmp_path, 10 + number))
        client.adapters.attach(f"n{number}", instance)
    for number in range(3):
        client.adapters.wait_ready(f"n{number}", instance)
    made = [client.adapters.add_version(f"n{n}", adapter_file(tmp_path, 20 + n)) for n in range(3)]
    for number, view in enumerate(made):
        client.adapters.wait_live(f"n{number}", view.version, timeout=60)
        adapter = client.adapters.get(f"n{number}")
        assert (view.digest or "")[:12] in ask(client, adapter.aliases[0])


@pytest.mark.parametrize(
    ("fault", "code"), [("refuse_load", "engine_refused"), ("ineffective", "adapter_ineffective")]
)
def test_one_that_cannot_be_loaded_leaves_the_live_one(
    site: Site, client: Pillion, tmp_path: Path, fault: str, code: str
) -> None:
    instance = site.launch(client, slots=1)
    made = client.adapters.upload("good", "tiny", adapter_file(tmp_path, 1))
    client.adapters.attach(made.id, instance)
    client.adapters.wait_ready(made.id, instance)
    view = client.adapters.add_version("good", adapter_file(tmp_path, 2), live=False)
    [engine] = site.engines(instance)
    engine.go_wrong(**{fault: view.digest})
    client.adapters.make_live("good", 2)
    with pytest.raises(PillionFailedError) as failed:
        client.adapters.wait_live("good", 2, timeout=60)
    assert failed.value.code == code
    assert (made.digest or "")[:12] in ask(client, made.aliases[0])
    assert "version 2 did not go live" in " ".join(client.adapters.get("good").warnings)
    third = client.adapters.add_version("good", adapter_file(tmp_path, 3))
    client.adapters.wait_live("good", 3, timeout=60)
    assert (third.digest or "")[:12] in ask(client, made.aliases[0])
    engine.go_wrong(**{fault: ""})
    client.adapters.make_live("good", 2)
    client.adapters.wait_live("good", 2, timeout=60)
    assert (view.digest or "")[:12] in ask(client, made.aliases[0])


def test_a_canary_gets_its_share(site: Site, client: Pillion, tmp_path: Path) -> None:
    instance = site.launch(client, slots=2)
    made = client.adapters.upload("tried", "tiny", adapter_file(tmp_path, 1))
    client.adapters.attach(made.id, instance)
    client.adapters.wait_ready(made.id, instance)
    client.adapters.add_version("tried", adapter_file(tmp_path, 2), live=False)
    client.adapters.set_canary("tried", 2, 0.5)
    until(lambda: versions_of(client, "tried")[1].ready == 1, "the canary is resident")
    digests = {str(v.version): v.digest or "" for v in versions_of(client, "tried")}
    asking = Asking(client, site.url, made.aliases[0], digests)
    until(lambda: asking.ask() == "2", "routed")
    asking.versions.clear()
    for _ in range(100):
        asking.ask()
    assert asking.wrong == []
    assert min(asking.versions.values()) > 20
    other = client.adapters.upload("extra", "tiny", adapter_file(tmp_path, 3))
    with pytest.raises(ConflictError) as full:
        client.adapters.attach(other.id, instance)
    assert full.value.code == "instance_at_capacity"
    assert client.adapters.end_canary("tried").unacknowledged == []
    asking.versions.clear()
    for _ in range(20):
        asking.ask()
    assert asking.versions == {"1": 20}
    client.adapters.attach(other.id, instance)
    client.adapters.wait_ready(other.id, instance)
