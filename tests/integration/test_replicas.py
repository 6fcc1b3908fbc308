"""Replicas in two regions: each is counted, one may fail, and an adapter bound to a region stays there."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from pillion.sdk import Pillion
from pillion.sdk.errors import InvalidRequestError

from .site import Engine, Site, adapter_file, ask, until

BOTH = ["eu-1", "us-1"]


def count(client: Pillion, name: str, instance: int) -> tuple[int, int]:
    attachment = client.adapters.attachment(name, instance)
    return attachment.ready, attachment.wanted


def regions(site: Site, client: Pillion, model: str) -> set[str]:
    """Where requests for `model` are answered, so many at once that no replica is left out."""
    key = client.keys.create(model, scopes=["inference"]).key
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    with httpx.Client(headers={"authorization": f"Bearer {key}"}) as http, ThreadPoolExecutor(8) as pool:
        post = partial(http.post, f"{site.url}/v1/chat/completions", json=body)
        answers = [asked.result() for asked in [pool.submit(post) for _ in range(24)]]
    return {answer.raise_for_status().headers["x-pillion-region"] for answer in answers}


def test_an_attachment_counts_its_replicas(site: Site, client: Pillion, tmp_path: Path) -> None:
    instance = site.launch(client, "slow", regions=BOTH, replicas=2)
    made = client.adapters.upload("captain", "slow", adapter_file(tmp_path, 1))
    eu, us = site.engines(instance)
    assert [eu.region, us.region] == BOTH
    us.process.suspend()
    try:
        client.adapters.attach("captain", instance)
        until(lambda: count(client, "captain", instance) == (1, 2), "one of two")
        assert regions(site, client, made.aliases[0]) == {"eu-1"}
    finally:
        us.process.resume()
    client.adapters.wait_ready("captain", instance)
    assert count(client, "captain", instance) == (2, 2)
    assert regions(site, client, made.aliases[0]) == set(BOTH)


def busy(engine: Engine) -> bool:
    state = engine.state()
    return any(model["inflight"] for model in (state["base"], *state["adapters"]))


def test_an_engine_killed_under_traffic_costs_no_answer(site: Site, client: Pillion, tmp_path: Path) -> None:
    instance = site.launch(client, "slow", regions=BOTH, replicas=2)
    made = client.adapters.upload("captain", "slow", adapter_file(tmp_path, 1))
    client.adapters.attach("captain", instance)
    client.adapters.wait_ready("captain", instance)
    ended = threading.Event()
    answers: Counter[str] = Counter()

    def work(model: str) -> None:
        while not ended.is_set():
            try:
                answers[ask(client, model)] += 1
            except Exception as error:
                answers[repr(error)] += 1

    threads = [threading.Thread(target=work, args=(model,)) for model in ("slow", made.aliases[0]) * 4]
    for thread in threads:
        thread.start()
    try:
        for engine in site.engines(instance):
            until(lambda: count(client, "captain", instance) == (2, 2), "both replicas")
            before = answers.total()
            until(lambda seen=before: answers.total() > seen + 40, "traffic")  # type: ignore[misc]
            until(lambda engine=engine: busy(engine), "requests on the engine that is killed")  # type: ignore[misc]
            engine.process.kill()
            before = answers.total()
            until(lambda seen=before: answers.total() > seen + 80, "traffic without it")  # type: ignore[misc]
        until(lambda: count(client, "captain", instance) == (2, 2), "both replicas again")
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    voices = {f"sim slow {voice} t1 t2 t3 t4" for voice in ("base", str(made.digest)[:12])}
    assert set(answers) == voices


def test_an_adapter_bound_to_a_region_stays_there(site: Site, client: Pillion, tmp_path: Path) -> None:
    instance = site.launch(client, "slow", regions=BOTH, replicas=2)
    made = client.adapters.upload("captain", "slow", adapter_file(tmp_path, 1), region="us-1")
    client.adapters.attach("captain", instance)
    client.adapters.wait_ready("captain", instance)
    assert count(client, "captain", instance) == (1, 1)
    assert regions(site, client, made.aliases[0]) == {"us-1"}
    assert regions(site, client, "slow") == set(BOTH)
    held = {engine.region: len(engine.state()["adapters"]) for engine in site.engines(instance)}
    assert held == {"eu-1": 0, "us-1": 1}


def test_an_adapter_bound_elsewhere_is_refused(site: Site, client: Pillion, tmp_path: Path) -> None:
    instance = site.launch(client, "slow", regions=["eu-1"])
    client.adapters.upload("captain", "slow", adapter_file(tmp_path, 1), region="us-1")
    with pytest.raises(InvalidRequestError, match="us-1"):
        client.adapters.attach("captain", instance)
    assert client.adapters.get("captain").attachments == []
