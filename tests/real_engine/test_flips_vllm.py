"""Flips and moves under traffic on a real vLLM: every answer is the one that the version in its header gives alone."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.integration.site import Site, running, until
from tests.solo import OPTIONS, Asker, Solo

from pillion.sdk import Pillion

pytestmark = pytest.mark.xdist_group("real_engine")

FULL = bool(os.environ.get("PILLION_TEST_FULL"))
FLIPS = 1000 if FULL else 50
MOVES = 20 if FULL else 4  # there and back
START_S = 300
FOLDERS = ("one", "two", "three")
VERSIONS = ("1", "2", "3")
LORA = {"max_adapters": 1, "max_rank": 16}
# Longer than a block of the prefix cache, and the same at the beginning: stale blocks would be found.
SHARED = " ".join(f"w{4 + 7 * n % 490}" for n in range(260))
PROMPTS = [f"{SHARED} w{11 + n} w{40 + n}" for n in range(4)]


@dataclass
class Held:
    """An adapter of three versions, attached to an instance that has room for no other, and what each says alone."""

    site: Site
    client: Pillion
    instance: int
    model: str
    solo: Solo

    def asker(self) -> Asker:
        headers = {"authorization": f"Bearer {self.site.admin}"}
        return Asker(httpx.Client(base_url=self.site.url, headers=headers, timeout=120), self.solo)

    def live(self, number: int) -> list[str]:
        """Make it live; the gateways that may not know of it yet."""
        view = self.client.adapters.make_live("flips", number)
        if view.state != "live":
            view = self.client.adapters.wait_live("flips", number, timeout=120)
            return ["?"]
        return view.unacknowledged

    @contextmanager
    def traffic(self, askers: int) -> Iterator[list[Asker]]:
        ended, made = threading.Event(), [self.asker() for _ in range(askers)]
        threads = [
            threading.Thread(target=asker.until, args=(ended, [self.model], PROMPTS, n))
            for n, asker in enumerate(made)
        ]
        for thread in threads:
            thread.start()
        try:
            yield made
        finally:
            ended.set()
            for thread in threads:
                thread.join()


@pytest.fixture(scope="module")
def held(engine_python: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    site = Site(tmp_path_factory.mktemp("site"))
    site.config.write_text(
        f'[[models]]\nname = "tiny"\nsource = "path:{models / "base"}"\nengine = "vllm"\n'
        f"options = {OPTIONS}\n"
    )
    with running(site):
        client = site.client()
        instance = client.instances.launch("tiny", lora=LORA).id
        adapter = client.adapters.upload("flips", "tiny", models / FOLDERS[0])
        for folder in FOLDERS[1:]:
            client.adapters.add_version("flips", models / folder, live=False)
        client.adapters.attach("flips", instance)
        client.adapters.wait_ready("flips", instance, timeout=START_S)
        made = Held(site, client, instance, adapter.aliases[0], Solo())
        _ask_alone(made)
        yield made


def _ask_alone(held: Held) -> None:
    alone = held.asker()
    for number in (2, 3, 1):
        held.live(number)
        for prompt in PROMPTS:
            version, said = alone.ask(held.model, prompt)
            assert version == str(number)
            assert said is not None
            held.solo[held.model, version, prompt] = said
    for prompt in PROMPTS:
        assert len({tuple(held.solo[held.model, version, prompt].tokens) for version in VERSIONS}) == 3


def wrong(askers: list[Asker]) -> list[str]:
    return [said for asker in askers for said in asker.wrong]


def counted(askers: list[Asker]) -> Counter[tuple[str, str]]:
    return sum((asker.counts for asker in askers), Counter[tuple[str, str]]())


@pytest.mark.timeout(3600)
def test_flips_under_traffic(held: Held) -> None:
    alone, stale = held.asker(), []
    with held.traffic(3) as askers:
        for flip in range(FLIPS):
            number = 1 + (flip + 1) % 3
            behind = held.live(number)
            if not behind and (answered := alone.check(held.model, PROMPTS[flip % 4])) != str(number):
                stale.append((flip, number, answered))
    counts, after = counted(askers), counted([alone])
    print(f"{FLIPS} flips: {counts.total()} answers beside, {after.total()} right after one: {dict(counts)}")
    assert wrong([*askers, alone]) == []
    assert stale == []
    assert after.total() > FLIPS / 2
    assert all(counts[held.model, version] > 2 for version in VERSIONS)


@pytest.mark.timeout(900)
def test_moves_under_traffic(held: Held) -> None:
    """From one engine to another and back: no request fails, and each is answered by the weights that it asked for."""
    other = held.client.instances.launch("tiny", lora=LORA).id
    held.client.instances.wait_running(other, timeout=START_S)
    places: list[str] = []
    alone = held.asker()
    with held.traffic(3) as askers:
        for move in range(MOVES):
            source, target = (held.instance, other) if move % 2 == 0 else (other, held.instance)
            before = counted(askers).total()
            until(lambda n=before: counted(askers).total() >= n + 6, "answers between moves")  # type: ignore[misc]
            held.client.adapters.move("flips", source, target)
            held.client.adapters.wait_ready("flips", target, timeout=START_S)
            held.client.adapters.wait_gone("flips", source, timeout=START_S)
            alone.check(held.model, PROMPTS[move % 4])
            places.append(alone.last["x-pillion-instance"])
    print(f"{MOVES} moves: {dict(counted(askers))}")
    assert wrong([*askers, alone]) == []
    assert places == [str(other if move % 2 == 0 else held.instance) for move in range(MOVES)]
    held.client.instances.stop(other)
