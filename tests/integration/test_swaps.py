"""Adapters attached and detached again and again while others serve: nothing fails, nothing is mixed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pillion.sdk import Pillion
from pillion.sdk.errors import ConflictError, NotFoundError

from .site import Site, adapter_file, ask, tag, until

SWAPS = 500 if os.environ.get("PILLION_TEST_FULL") else 50


@pytest.mark.timeout(900)
def test_swaps_lose_and_mix_nothing(site: Site, client: Pillion, tmp_path: Path) -> None:
    instance = site.launch(client, slots=3)
    expected, wrong = {"tiny": tag(None)}, []
    for seed in range(1, 5):
        made = client.adapters.upload(f"a{seed}", "tiny", adapter_file(tmp_path, seed))
        if seed <= 2:
            client.adapters.attach(made.id, instance)
            client.adapters.wait_ready(made.id, instance)
            expected[made.aliases[0]] = tag(made.digest)
    served, ended = [0] * 8, threading.Event()

    def work(number: int) -> None:
        names = sorted(expected)
        while not ended.is_set():
            name = names[served[number] % len(names)]
            try:
                answer = ask(client, name)
            except Exception as error:
                answer = repr(error)
            if answer != expected[name]:
                wrong.append((name, answer))
            served[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(served))]
    for thread in threads:
        thread.start()
    try:
        for swap in range(SWAPS):
            name = f"a{3 + swap % 2}"
            client.adapters.attach(name, instance)
            client.adapters.wait_ready(name, instance)
            adapter = client.adapters.get(name)
            if (answer := ask(client, adapter.aliases[0])) != tag(adapter.digest):
                wrong.append((name, answer))
            client.adapters.detach(name, instance)
            client.adapters.wait_gone(name, instance)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert min(served) > 10


def test_loads_make_room_and_pins_hold_it(site: Site, client: Pillion, tmp_path: Path) -> None:
    instance = site.launch(client, slots=2)
    made = [client.adapters.upload(f"b{n}", "tiny", adapter_file(tmp_path, n)) for n in range(1, 5)]
    for adapter in made[:3]:  # the third pushes out the first, which is not pinned
        client.adapters.load(adapter.id, backends=[instance])
        assert ask(client, adapter.aliases[0]) == tag(adapter.digest)
    for adapter in made[1:3]:
        client.adapters.load(adapter.id, backends=[instance], pin=True)
    with pytest.raises(ConflictError) as full:
        client.adapters.load(made[3].id, backends=[instance])
    assert full.value.code == "instance_at_capacity"
    client.adapters.unload(made[1].id)
    client.adapters.load(made[3].id, backends=[instance])
    assert ask(client, made[3].aliases[0]) == tag(made[3].digest)


def test_a_load_ends_when_its_time_is_over(site: Site, client: Pillion, tmp_path: Path) -> None:
    instance = site.launch(client, slots=2)
    made = client.adapters.upload("brief", "tiny", adapter_file(tmp_path, 1))
    client.adapters.load(made.id, backends=[instance], ttl_seconds=2)
    assert ask(client, made.aliases[0]) == tag(made.digest)
    until(lambda: not client.adapters.get(made.id).attachments, "its end", timeout=10)
    with pytest.raises(NotFoundError):
        ask(client, made.aliases[0])
    [engine] = site.engines(instance)
    until(lambda: not engine.state()["adapters"], "gone from the engine", timeout=10)
