"""A short random walk on a real vLLM under traffic: every answer is the one that the version in its header gives alone."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pillion.sdk import Pillion
from pillion.sdk.errors import ConflictError
from pillion.sdk.types import Adapter
from tests.integration.site import Site, running, until
from tests.real_models import engine_python, models
from tests.solo import OPTIONS, Asker, Solo

__all__ = ["engine_python", "models"]

STEPS = 400 if os.environ.get("PILLION_TEST_FULL") else 60
SLOTS = 2  # for three adapters: now and then one is refused
START_S = 120.0
VERSIONS = {"first": ("one", "two", "three"), "second": ("two", "three"), "third": ("three",)}
# Longer than a block of the prefix cache, and the same at the beginning: stale blocks would be found.
SHARED = " ".join(f"w{4 + 7 * n % 490}" for n in range(130))
PROMPTS = [f"{SHARED} w{11 + n} w{40 + n}" for n in range(3)]
HONEST = frozenset({"adapter_not_deployed", "adapter_loading", "no_healthy_replica"})


@pytest.fixture
def site(engine_python: Path, models: Path, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.config.write_text(
        f'[[models]]\nname = "tiny"\nsource = "path:{models / "base"}"\nengine = "vllm"\n'
        f"options = {OPTIONS}\n"
    )
    with running(made):
        yield made


class Walk:
    """One thing after another is done to three adapters on one instance."""

    def __init__(self, client: Pillion, instance: int, seed: int) -> None:
        self._client, self._instance, self._draw = client, instance, random.Random(seed)
        self.done: Counter[str] = Counter()

    def step(self) -> None:
        """One more of what may be done, with an adapter that is drawn. A refusal is an answer, too."""
        name = self._draw.choice(sorted(VERSIONS))
        what = self._draw.choice([self.attach, self.detach, self.load, self.unload, self.flip, self.flip])
        try:
            what(name)
            self.done[what.__name__] += 1
        except ConflictError as error:
            self.done[str(error.code)] += 1

    def attach(self, name: str) -> None:
        self._client.adapters.attach(name, self._instance)
        self._client.adapters.wait_ready(name, self._instance, timeout=START_S)

    def detach(self, name: str) -> None:
        if self._held(name):
            self._client.adapters.detach(name, self._instance, force=self._draw.random() < 0.3)
            self._client.adapters.wait_gone(name, self._instance)

    def load(self, name: str) -> None:
        self._client.adapters.load(name, backends=[self._instance], pin=self._draw.random() < 0.5)

    def unload(self, name: str) -> None:
        if self._held(name) is not None:
            self._client.adapters.unload(name, backends=[self._instance])

    def flip(self, name: str) -> None:
        number = self._draw.randint(1, len(VERSIONS[name]))
        self._client.adapters.make_live(name, number)
        self._client.adapters.wait_live(name, number, timeout=START_S)

    def _held(self, name: str) -> bool | None:
        """Whether it is attached; None where it is neither attached nor loaded."""
        return next((a.attached for a in self._client.adapters.get(name).attachments), None)


@contextmanager
def asked(site: Site, solo: Solo, models: list[str]) -> Iterator[list[Asker]]:
    """Three of them, without a pause; nothing wrong is said meanwhile."""
    ended = threading.Event()
    headers = {"authorization": f"Bearer {site.admin}"}
    askers = [
        Asker(httpx.Client(base_url=site.url, headers=headers, timeout=120), solo, HONEST) for _ in range(3)
    ]
    threads = [
        threading.Thread(target=a.until, args=(ended, models, PROMPTS, n)) for n, a in enumerate(askers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield askers
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        for asker in askers:
            asker.http.close()
    assert [wrong for asker in askers for wrong in asker.wrong] == []


def alone(site: Site, client: Pillion, instance: int, adapters: list[Adapter]) -> Solo:
    """What each version says when nobody else is there."""
    solo: Solo = {}
    with httpx.Client(
        base_url=site.url, headers={"authorization": f"Bearer {site.admin}"}, timeout=120
    ) as http:
        asker = Asker(http, solo)

        def keep(model: str, wanted: str) -> None:
            for prompt in PROMPTS:
                version, said = asker.ask(model, prompt)
                assert version == wanted
                assert said is not None
                solo[model, version, prompt] = said

        keep("tiny", "")
        for adapter in adapters:
            client.adapters.attach(adapter.name, instance)
            client.adapters.wait_ready(adapter.name, instance, timeout=START_S)
            for number in range(len(VERSIONS[adapter.name]), 0, -1):
                client.adapters.make_live(adapter.name, number)
                client.adapters.wait_live(adapter.name, number, timeout=START_S)
                keep(adapter.aliases[0], str(number))
            client.adapters.detach(adapter.name, instance)
            client.adapters.wait_gone(adapter.name, instance)
    return solo


def uploaded(client: Pillion, models: Path) -> list[Adapter]:
    made = []
    for name, (first, *others) in VERSIONS.items():
        made.append(client.adapters.upload(name, "tiny", models / first))
        for folder in others:
            client.adapters.add_version(name, models / folder, live=False)
    return made


def whole(client: Pillion, instance: int) -> bool:
    """Facts equal wishes."""
    found = [a for adapter in client.adapters.list() for a in adapter.attachments]
    return client.instances.get(instance).state == "running" and all(a.state == "ready" for a in found)


@pytest.mark.timeout(3600)
def test_a_walk_under_traffic(site: Site, models: Path) -> None:
    client = site.client()
    instance = client.instances.launch("tiny", lora={"max_adapters": SLOTS, "max_rank": 16}).id
    adapters = uploaded(client, models)
    client.instances.wait_running(instance, timeout=300)
    solo = alone(site, client, instance, adapters)
    for adapter in adapters:
        versions = [str(n + 1) for n in range(len(VERSIONS[adapter.name]))]
        said = [tuple(solo[adapter.aliases[0], version, PROMPTS[0]].tokens) for version in versions]
        assert len({*said, tuple(solo["tiny", "", PROMPTS[0]].tokens)}) == len(versions) + 1
    names = ["tiny", *(adapter.aliases[0] for adapter in adapters)]
    walk = Walk(client, instance, seed=5)
    with asked(site, solo, names) as askers:
        for _ in range(STEPS // 2):
            walk.step()
        [engine] = site.engines(instance)
        engine.process.kill()
        began = time.monotonic()
        until(lambda: client.instances.get(instance).state != "running", "it is noticed")
        until(lambda: whole(client, instance), "the engine again, with all it had", timeout=300)
        took = time.monotonic() - began
        for _ in range(STEPS // 2):
            walk.step()
        until(lambda: whole(client, instance), "quiet")
    counts = sum((asker.counts for asker in askers), Counter[tuple[str, str]]())
    print(f"{dict(walk.done)}; healed in {took:.1f} s; {counts.total()} answers: {dict(counts)}")
    assert {"attach", "detach", "load", "unload", "flip"} <= set(walk.done)
    assert counts["tiny", ""] > 20
    assert sum(model != "tiny" and code not in HONEST for model, code in counts) >= 4
