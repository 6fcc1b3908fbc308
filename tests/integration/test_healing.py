"""What breaks under traffic comes back by itself, and nothing wrong is answered meanwhile. Each tells how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from pillion.sdk import Pillion
from pillion.sdk.types import Adapter

from .site import Engine, Site, adapter_file, ask, tag, until
from .traffic import traffic

HONEST = {"no_healthy_replica", "adapter_loading"}


def attached(client: Pillion, name: str, instance: int, folder: Path, seed: int) -> Adapter:
    made = client.adapters.upload(name, "tiny", adapter_file(folder, seed))
    client.adapters.attach(name, instance)
    client.adapters.wait_ready(name, instance)
    return made


def another(site: Site, instance: int, gone: Engine) -> Engine | None:
    """The engine that runs in its place."""
    found = [e for e in site.engines(instance) if e.region == gone.region and e.process != gone.process]
    return found[0] if found else None


def whole(client: Pillion, instance: int, adapter: Adapter, replicas: int) -> bool:
    found = client.adapters.attachment(adapter.id, instance)
    running = client.instances.get(instance).state == "running"
    return running and (found.ready, found.wanted) == (replicas, replicas)


def resident(engine: Engine) -> set[str]:
    return {row["name"] for row in engine.state()["adapters"] if row["resident"] and row["open"]}


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - began:.2f} s")


def test_an_engine_that_hangs_under_traffic_is_replaced_and_the_other_goes_on(
    site: Site, client: Pillion, tmp_path: Path
) -> None:
    instance = site.launch(client, regions=["eu-1", "us-1"], replicas=2)
    captain = attached(client, "captain", instance, tmp_path, 1)
    hung, other = site.engines(instance)
    with traffic(client, [captain.aliases[0]], each=4) as asked:
        asked.goes_on(captain.aliases[0])
        hung.go_wrong(hang=True)
        asked.goes_on(captain.aliases[0], more=200)
        assert hung.process.is_running(), "it goes on before it is healed"
        with timed("an engine that hangs is replaced"):
            new = until(lambda: another(site, instance, hung), "another engine")
        with timed("until all is whole"):
            until(lambda: whole(client, instance, captain, 2), "both replicas again")
        asked.goes_on(captain.aliases[0])
    assert set(asked.answers[captain.aliases[0]]) == {tag(captain.digest)}
    assert not hung.process.is_running()
    assert other.process.is_running()
    assert resident(new) == resident(other) == {f"{captain.id}@{captain.digest}"}


@pytest.mark.parametrize("on_demand", [True, False])
def test_who_waits_at_a_node_that_freezes_is_answered_by_another(
    site: Site, client: Pillion, tmp_path: Path, on_demand: bool
) -> None:
    """The agent, too, so that nothing is healed meanwhile: one request after the other, as by a single client."""
    lora = {"enabled": True, "max_adapters": 2, "on_demand": on_demand}
    instance = client.instances.launch("tiny", regions=["eu-1", "us-1"], replicas=2, lora=lora).id
    client.instances.wait_running(instance, timeout=60)
    seed = 21 + on_demand
    if on_demand:  # it is warm in one place alone
        captain = client.adapters.upload("captain", "tiny", adapter_file(tmp_path, seed))
    else:
        captain = attached(client, "captain", instance, tmp_path, seed)
    before = answered(client, captain)
    [frozen] = [e for e in site.engines(instance) if e.region == before.headers["x-pillion-region"]]
    agent = frozen.process.parent()
    assert agent is not None
    with stopped(frozen.process, agent):
        for number in range(5):
            with timed(f"request {number + 1} after a node froze"):
                answer = answered(client, captain)
            assert answer.headers["x-pillion-region"] != frozen.region
            assert ("x-pillion-cold" in answer.headers) == (on_demand and number == 0)
    until(lambda: client.instances.get(instance).state == "running", "both replicas again")
    answered(client, captain)


def answered(client: Pillion, adapter: Adapter) -> httpx.Response:
    body = {"model": adapter.aliases[0], "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    http: httpx.Client = client._transport._http
    answer = http.post("/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == tag(adapter.digest)
    return answer


@contextmanager
def stopped(*processes: psutil.Process) -> Iterator[None]:
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def deleted(cached: Path) -> None:
    for path in cached.iterdir():
        path.unlink()
    cached.rmdir()


def corrupted(cached: Path) -> None:
    """One bit of the weights."""
    path = cached / "adapter_model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(damaged)


@pytest.mark.parametrize("harm", [deleted, corrupted])
def test_a_nodes_copy_that_is_gone_or_damaged_is_fetched_anew(
    site: Site, client: Pillion, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """The engine is killed, so that the copy is needed again."""
    instance = site.launch(client)
    captain = attached(client, "captain", instance, tmp_path, 11 if harm is deleted else 12)
    [engine] = site.engines(instance)
    cached, stored = copies(site, captain)
    assert contents(cached) == contents(stored)
    with traffic(client, [captain.aliases[0], "tiny"]) as asked:
        asked.goes_on(captain.aliases[0])
        harm(cached)
        asked.goes_on(captain.aliases[0])  # what the engine holds is its own
        engine.process.kill()
        with timed(f"a copy that is {harm.__name__}, and the engine killed"):
            until(lambda: another(site, instance, engine), "another engine")
            until(lambda: whole(client, instance, captain, 1), "the adapter again")
        asked.goes_on(captain.aliases[0], "tiny")
    assert contents(cached) == contents(stored)
    assert set(asked.answers[captain.aliases[0]]) <= {tag(captain.digest), *HONEST}
    assert set(asked.answers["tiny"]) <= {tag(None), *HONEST}


def copies(site: Site, adapter: Adapter) -> tuple[Path, Path]:
    """Where its bytes lie on the node, and in the artifact store."""
    digest = str(adapter.digest)
    return site.data / "cache/adapters" / digest, site.data / "artifacts/adapters" / digest[:2] / digest


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def store(site: Site) -> Iterator[Callable[[bool], None]]:
    """Takes the artifact store's adapters away, or gives them back."""
    here, away = site.data / "artifacts/adapters", site.data / "artifacts/away"

    def be(there: bool) -> None:
        (away if there else here).rename(here if there else away)

    yield be
    if away.exists():
        be(True)


def test_a_load_while_the_store_is_away_says_so_and_comes_when_it_is_back(
    site: Site, client: Pillion, tmp_path: Path, store: Callable[[bool], None]
) -> None:
    instance = site.launch(client)
    captain = attached(client, "captain", instance, tmp_path, 41)
    late = client.adapters.upload("late", "tiny", adapter_file(tmp_path, 42))
    assert not copies(site, late)[0].exists(), "no other test here has these bytes"
    with traffic(client, [captain.aliases[0], late.aliases[0]]) as asked:
        store(False)
        client.adapters.load("late", backends=[instance], pin=True, wait=False)
        told = until(lambda: waits_for_its_bytes(client, late), "it is told why")
        assert str(late.digest) in told
        asked.goes_on(captain.aliases[0], late.aliases[0])
        assert tag(late.digest) not in asked.answers[late.aliases[0]]
        store(True)
        with timed("a load after the store came back"):
            until(lambda: asked.answers[late.aliases[0]][tag(late.digest)], "its own answer")
        asked.goes_on(captain.aliases[0], late.aliases[0])
    assert set(asked.answers[captain.aliases[0]]) == {tag(captain.digest)}
    assert set(asked.answers[late.aliases[0]]) <= {tag(late.digest), *HONEST, "adapter_not_deployed"}


def waits_for_its_bytes(client: Pillion, adapter: Adapter) -> str:
    """What the explanation says of it, once it is that its bytes are missing."""
    explained = repr(client.adapters.explain(adapter.id))
    return explained if "artifact_missing" in explained else ""


def test_an_engine_that_refuses_one_adapter_hurts_no_other_under_traffic(
    site: Site, client: Pillion, tmp_path: Path
) -> None:
    instance = site.launch(client, regions=["eu-1", "us-1"], replicas=2)
    captain = attached(client, "captain", instance, tmp_path, 31)
    poor = client.adapters.upload("poor", "tiny", adapter_file(tmp_path, 32))
    one, other = engines = site.engines(instance)
    one.go_wrong(refuse_load=poor.id)
    with traffic(client, [captain.aliases[0], poor.aliases[0], "tiny"]) as asked:
        client.adapters.attach("poor", instance)
        until(lambda: client.adapters.attachment("poor", instance).state == "failed", "it is told")
        asked.goes_on(captain.aliases[0], poor.aliases[0], "tiny")
        one.go_wrong(refuse_load="")
        client.adapters.detach("poor", instance)
        client.adapters.wait_gone("poor", instance)
        client.adapters.attach("poor", instance)
        with timed("an adapter that was refused, asked for again"):
            client.adapters.wait_ready("poor", instance)
        asked.goes_on(captain.aliases[0], poor.aliases[0], "tiny")
    assert set(asked.answers[captain.aliases[0]]) == {tag(captain.digest)}
    assert set(asked.answers["tiny"]) == {tag(None)}
    told = set(asked.answers[poor.aliases[0]])
    assert tag(poor.digest) in told
    assert told <= {tag(poor.digest), *HONEST, "adapter_not_deployed"}
    names = {f"{adapter.id}@{adapter.digest}" for adapter in (captain, poor)}
    assert [resident(engine) for engine in engines] == [names, names]
    assert ask(client, poor.aliases[0]) == tag(poor.digest)
    assert all(engine.process.is_running() for engine in (one, other))
