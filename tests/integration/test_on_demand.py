"""Loads on demand through a whole Pillion: a request brings its adapter, and says so."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from pillion.sdk import Pillion
from pillion.sdk.errors import NotFoundError, PillionAPIError
from pillion.sdk.types import Adapter

from .site import Site, adapter_file, ask, running, tag, until
from .traffic import traffic

FULL = bool(os.environ.get("PILLION_TEST_FULL"))


def call(client: Pillion, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    http: httpx.Client = client._transport._http
    return http.post("/v1/chat/completions", json=body)


def said(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def uploaded(client: Pillion, folder: Path, count: int, start: int = 1) -> list[Adapter]:
    return [
        client.adapters.upload(f"d{n}", "tiny", adapter_file(folder, n)) for n in range(start, start + count)
    ]


@pytest.fixture
def on_demand(site: Site, client: Pillion) -> int:
    made = client.instances.launch(
        "tiny", regions=["eu-1"], lora={"enabled": True, "max_adapters": 2, "on_demand": True}
    )
    client.instances.wait_running(made.id, timeout=60)
    return made.id


def served(client: Pillion, adapter: Adapter) -> httpx.Response:
    """Once there is an engine that can."""
    return until(
        lambda: answer if (answer := call(client, adapter.aliases[0])).status_code == 200 else None,
        "served on demand",
    )


def test_a_request_brings_its_adapter_and_others_make_room(
    site: Site, client: Pillion, on_demand: int, tmp_path: Path
) -> None:
    made = uploaded(client, tmp_path, 5)
    assert made[-1].aliases[0] in listed(client)
    for adapter in made:
        answer = call(client, adapter.aliases[0])
        assert (answer.status_code, said(answer)) == (200, tag(adapter.digest)), answer.text
        assert answer.headers["x-pillion-cold"] == "load"
    again = call(client, made[-1].aliases[0])
    assert (said(again), "x-pillion-cold" in again.headers) == (tag(made[-1].digest), False)
    [backend] = until(
        lambda: [b for b in client.adapters.status() if b.instance_id == on_demand and len(b.adapters) == 2],
        "status shows them",
    )
    assert (backend.slots, backend.used, backend.free) == (2, 2, 0)
    assert {a["on_demand"] for a in backend.adapters} == {True}
    events = until(lambda: [e for e in client.usage.events() if e.cold] or None, "usage")
    assert len(events) >= 1


def listed(client: Pillion) -> set[str]:
    http: httpx.Client = client._transport._http
    return {entry["id"] for entry in http.get("/v1/models").json()["data"]}


def test_many_requests_wait_for_one_load(client: Pillion, on_demand: int, tmp_path: Path) -> None:
    [adapter] = uploaded(client, tmp_path, 1)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: call(client, adapter.aliases[0]), range(20)))
    assert {(a.status_code, said(a)) for a in answers} == {(200, tag(adapter.digest))}


def test_what_is_attached_never_goes_and_what_is_deleted_is_gone_at_once(
    site: Site, client: Pillion, on_demand: int, tmp_path: Path
) -> None:
    held, one, two, three = uploaded(client, tmp_path, 4)
    client.adapters.attach(held.id, on_demand)
    client.adapters.wait_ready(held.id, on_demand)
    for adapter in (one, two, three, one):
        assert said(served(client, adapter)) == tag(adapter.digest)
        assert said(call(client, held.aliases[0])) == tag(held.digest)
    client.adapters.delete(one.id)
    answer = call(client, one.aliases[0])
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    [engine] = site.engines(on_demand)
    until(lambda: one.id not in str(engine.state()["adapters"]), "gone from the engine")


def test_an_ended_load_does_not_come_back_on_demand(client: Pillion, on_demand: int, tmp_path: Path) -> None:
    [adapter] = uploaded(client, tmp_path, 1)
    client.adapters.load(adapter.id, backends=[on_demand], ttl_seconds=2)
    assert ask(client, adapter.aliases[0]) == tag(adapter.digest)
    until(lambda: not client.adapters.get(adapter.id).attachments, "its end", timeout=10)
    for _ in range(3):
        with pytest.raises(NotFoundError) as ended:
            ask(client, adapter.aliases[0])
        assert ended.value.code == "adapter_not_deployed"
    client.adapters.load(adapter.id, backends=[on_demand])
    assert ask(client, adapter.aliases[0]) == tag(adapter.digest)


def test_unload_gives_up_the_hold_and_the_next_request_loads_again(
    client: Pillion, on_demand: int, tmp_path: Path
) -> None:
    [adapter] = uploaded(client, tmp_path, 1)
    client.adapters.load(adapter.id, backends=[on_demand], pin=True)
    failed: Counter[str] = Counter()
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            try:
                assert ask(client, adapter.aliases[0]) == tag(adapter.digest)
                failed["served"] += 1
            except PillionAPIError as error:
                failed[str(error.code)] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    client.adapters.unload(adapter.id)
    until(lambda: not client.adapters.get(adapter.id).attachments, "the wish is gone")
    ended.set()
    for thread in threads:
        thread.join()
    assert failed.keys() == {"served"}


def test_a_new_version_of_what_came_on_demand_is_live_at_once_and_fails_no_request(
    client: Pillion, on_demand: int, tmp_path: Path
) -> None:
    """It must be resident nowhere: the next request loads it, the old one leaves when its requests have ended."""
    [adapter] = uploaded(client, tmp_path, 1)
    model, told = adapter.aliases[0], [tag(adapter.digest)]
    assert said(served(client, adapter)) == told[0]
    with traffic(client, [model], each=4) as asked:
        for seed in range(50, 60 if FULL else 54):
            asked.goes_on(model)
            version = client.adapters.add_version(adapter.id, adapter_file(tmp_path, seed))
            assert version.state == "live"
            told.append(tag(version.digest))
            assert ask(client, model) == told[-1]
        asked.goes_on(model)
    assert set(asked.answers[model]) == set(told)


def test_off_it_stays_an_error_that_says_what_to_do(site: Site, client: Pillion, tmp_path: Path) -> None:
    site.launch(client, slots=2)
    [adapter] = uploaded(client, tmp_path, 1)
    answer = call(client, adapter.aliases[0])
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapter_not_deployed")


class Pooled(Site):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        pool = '[[pools]]\nmodel = "tiny"\nreplicas = 2\nmax_adapters = 3\n'
        self.config.write_text(self.config.read_text() + "\n" + pool)


@pytest.mark.timeout(600)
def test_two_tenants_share_a_pool_also_while_control_is_away(tmp_path: Path) -> None:
    """More adapters than slots, by Zipf's law; then control is killed and a new adapter is asked for all the same."""
    site = Pooled(tmp_path)
    with running(site):
        tenants = [site.tenant("one"), site.tenant("two")]
        made = {t: uploaded(t, tmp_path / str(n), 6, 10 * n + 1) for n, t in enumerate(tenants)}
        for tenant in tenants:
            served(tenant, made[tenant][0])
        rng, wrong, codes = random.Random(3), [], Counter[Any]()

        def work(number: int) -> None:
            tenant = tenants[number % 2]
            for rank in draws[number]:
                adapter = made[tenant][rank]
                answer = call(tenant, adapter.aliases[0])
                codes[answer.status_code] += 1
                if answer.status_code == 200 and said(answer) != tag(adapter.digest):
                    wrong.append((adapter.id, said(answer)))

        count = 400 if FULL else 60
        weights = [1 / (rank + 1) for rank in range(6)]
        draws = [rng.choices(range(6), weights, k=count) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert wrong == []
        assert codes[200] >= 0.98 * 4 * count, codes
        foreign = call(tenants[0], made[tenants[1]][0].aliases[0])
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (404, "model_not_found")
        own = {a.id for a in made[tenants[0]]}
        for backend in tenants[0].adapters.status():
            assert {a["adapter_id"] for a in backend.adapters} <= own, "on a pool only one's own"

        [control] = site.processes("control")
        control.suspend()
        try:
            for adapter in made[tenants[0]]:
                answer = call(tenants[0], adapter.aliases[0])
                assert (answer.status_code, said(answer)) == (200, tag(adapter.digest)), answer.text
        finally:
            control.resume()
