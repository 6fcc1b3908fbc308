"""Flips under traffic on a real vLLM: every answer is the one that the version in its header gives alone."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.integration.site import Site, running
from tests.solo import Asker, Solo

from pillion.sdk import Pillion

pytestmark = pytest.mark.xdist_group("real_engine")

FLIPS = 1000 if os.environ.get("PILLION_TEST_FULL") else 50
FOLDERS = ("one", "two", "three")
# Longer than a block of the prefix cache, and the same at the beginning: stale blocks would be found.
SHARED = " ".join(f"w{4 + 7 * n % 490}" for n in range(260))
PROMPTS = [f"{SHARED} w{11 + n} w{40 + n}" for n in range(4)]


@pytest.fixture
def site(engine_python: Path, models: Path, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.config.write_text(
        f'[[models]]\nname = "tiny"\nsource = "path:{models / "base"}"\nengine = "vllm"\n'
        "options = {threads = 2, max_num_seqs = 16}\n"
    )
    with running(made):
        yield made


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
    model, solo = made.aliases[0], Solo()
    headers = {"authorization": f"Bearer {site.admin}"}
    alone, *askers = (
        Asker(httpx.Client(base_url=site.url, headers=headers, timeout=120), solo) for _ in range(4)
    )
    for number in (2, 3, 1):
        live(client, number)
        for prompt in PROMPTS:
            version, said = alone.ask(model, prompt)
            assert version == str(number)
            assert said is not None
            solo[model, version, prompt] = said
    for prompt in PROMPTS:
        assert len({tuple(solo[model, version, prompt].tokens) for version in ("1", "2", "3")}) == 3

    ended = threading.Event()
    threads = [
        threading.Thread(target=asker.until, args=(ended, [model], PROMPTS, n))
        for n, asker in enumerate(askers)
    ]
    for thread in threads:
        thread.start()
    stale = []
    try:
        for flip in range(FLIPS):
            number = 1 + (flip + 1) % 3
            behind = live(client, number)
            if not behind and (answered := alone.check(model, PROMPTS[flip % 4])) != str(number):
                stale.append((flip, number, answered))
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    counts = sum((asker.counts for asker in askers), Counter[tuple[str, str]]())
    print(f"{counts.total()} answers over {FLIPS} flips: {dict(counts)}")
    assert [wrong for asker in (*askers, alone) for wrong in asker.wrong] == []
    assert stale == []
    assert all(counts[model, version] > 2 for version in ("1", "2", "3"))
