"""Flips under traffic on a real vLLM: every answer is the one that the version in its header gives alone."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.integration.site import Site, running

from pillion.sdk import Pillion

pytestmark = pytest.mark.xdist_group("real_engine")

FLIPS = 1000 if os.environ.get("PILLION_TEST_FULL") else 50
FOLDERS = ("one", "two", "three")
TIE = 1e-3
# Longer than a block of the prefix cache, and the same at the beginning: stale blocks would be found.
SHARED = " ".join(f"w{4 + 7 * n % 490}" for n in range(260))
PROMPTS = [f"{SHARED} w{11 + n} w{40 + n}" for n in range(4)]

Solo = dict[tuple[str, str], tuple[list[str], list[float]]]


@pytest.fixture
def site(engine_python: Path, models: Path, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.config.write_text(
        f'[[models]]\nname = "tiny"\nsource = "path:{models / "base"}"\nengine = "vllm"\n'
        "options = {threads = 2, max_num_seqs = 16}\n"
    )
    with running(made):
        yield made


class Asker:
    """Asks for the adapter, and keeps every answer that is not the one its version gave alone."""

    def __init__(self, site: Site, model: str, solo: Solo) -> None:
        headers = {"authorization": f"Bearer {site.admin}"}
        self._http = httpx.Client(base_url=site.url, headers=headers, timeout=120)
        self._model, self._solo = model, solo
        self.wrong: list[str] = []
        self.counts: dict[str, int] = {}

    def ask(self, prompt: str) -> tuple[str, list[str], list[float]]:
        """Version, greedy tokens, and how far the second best lay behind at each."""
        body = {"model": self._model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": 2}
        answer = self._http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        scores = answer.json()["choices"][0]["logprobs"]
        ranked = [sorted(top.values(), reverse=True) for top in scores["top_logprobs"]]
        version = answer.headers["x-pillion-adapter-version"]
        self.counts[version] = self.counts.get(version, 0) + 1
        return version, scores["tokens"], [two[0] - two[-1] for two in ranked]

    def check(self, prompt: str) -> str:
        version, tokens, _ = self.ask(prompt)
        wanted, margins = self._solo[version, prompt]
        for one, other, margin in zip(tokens, wanted, margins, strict=True):
            if margin < TIE:
                break
            if one != other:
                self.wrong.append(f"version {version}: {tokens}, alone {wanted}")
                break
        return version

    def until(self, ended: threading.Event, seed: int) -> None:
        draw = random.Random(seed)
        while not ended.is_set():
            try:
                self.check(draw.choice(PROMPTS))
            except Exception as error:
                self.wrong.append(repr(error))


def live(client: Pillion, number: int) -> list[str]:
    """Make it live; the gateways that may not know of it yet."""
    view = client.adapters.make_live("flips", number)
    if view.state != "live":
        view = client.adapters.wait_live("flips", number, timeout=120)
        return ["?"]
    return view.unacknowledged


@pytest.mark.timeout(3600)
def test_flips_under_traffic(site: Site, models: Path) -> None:
    client = site.client()
    instance = client.instances.launch("tiny", lora={"max_adapters": 1, "max_rank": 16}).id
    made = client.adapters.upload("flips", "tiny", models / FOLDERS[0])
    for folder in FOLDERS[1:]:
        client.adapters.add_version("flips", models / folder, live=False)
    client.adapters.attach("flips", instance)
    client.adapters.wait_ready("flips", instance, timeout=300)
    solo: Solo = {}
    alone = Asker(site, made.aliases[0], solo)
    for number in (2, 3, 1):
        live(client, number)
        for prompt in PROMPTS:
            version, tokens, margins = alone.ask(prompt)
            assert version == str(number)
            solo[version, prompt] = tokens, margins
    for prompt in PROMPTS:
        assert len({tuple(solo[version, prompt][0]) for version in ("1", "2", "3")}) == 3

    askers = [Asker(site, made.aliases[0], solo) for _ in range(3)]
    ended = threading.Event()
    threads = [threading.Thread(target=a.until, args=(ended, n)) for n, a in enumerate(askers)]
    for thread in threads:
        thread.start()
    stale = []
    try:
        for flip in range(FLIPS):
            number = 1 + (flip + 1) % 3
            behind = live(client, number)
            if not behind and (answered := alone.check(PROMPTS[flip % 4])) != str(number):
                stale.append((flip, number, answered))
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    counts = [asker.counts for asker in askers]
    print(f"{sum(sum(c.values()) for c in counts)} answers over {FLIPS} flips: {counts}")
    assert [wrong for asker in (*askers, alone) for wrong in asker.wrong] == []
    assert stale == []
    assert all(sum(c[v] for c in counts) > 2 for v in ("1", "2", "3"))
