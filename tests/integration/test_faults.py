"""Engines that go wrong: what they break stays theirs, and ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from pillion.sdk import Pillion
from pillion.sdk.errors import NotFoundError, PillionFailedError, UnavailableError
from pillion.sdk.types import Adapter

from .site import Engine, Site, adapter_file, ask, tag, until


def attached(client: Pillion, name: str, instance: int, folder: Path, model: str = "tiny") -> Adapter:
    seed = sum(name.encode())
    made = client.adapters.upload(name, model, adapter_file(folder, seed))
    client.adapters.attach(name, instance)
    client.adapters.wait_ready(name, instance)
    return made


def in_flight(engine: Engine) -> int:
    state = engine.state()
    return int(state["base"]["inflight"] + sum(adapter["inflight"] for adapter in state["adapters"]))


def is_unknown(client: Pillion, model: str) -> bool:
    """False where it is said to be on its way. It is never answered."""
    with pytest.raises((NotFoundError, UnavailableError)) as refused:
        ask(client, model)
    return refused.errisinstance(NotFoundError)


@pytest.mark.parametrize(
    ("fault", "code"), [("refuse_load", "engine_refused"), ("ineffective", "adapter_ineffective")]
)
def test_one_adapter_that_cannot_be_served_fails_alone(
    site: Site, client: Pillion, tmp_path: Path, fault: str, code: str
) -> None:
    instance = site.launch(client)
    captain = attached(client, "captain", instance, tmp_path)
    poor = client.adapters.upload("poor", "tiny", adapter_file(tmp_path, 2))
    [engine] = site.engines(instance)
    engine.go_wrong(**{fault: poor.id})
    client.adapters.attach("poor", instance)
    with pytest.raises(PillionFailedError) as failed:
        client.adapters.wait_ready("poor", instance)
    assert failed.value.code == code
    until(lambda: is_unknown(client, poor.aliases[0]), "gateways hear of it")
    assert ask(client, captain.aliases[0]) == tag(captain.digest)
    assert ask(client, "tiny") == tag(None)

    engine.go_wrong(**{fault: ""})
    client.adapters.detach("poor", instance)
    client.adapters.wait_gone("poor", instance)
    client.adapters.attach("poor", instance)
    client.adapters.wait_ready("poor", instance)
    assert ask(client, poor.aliases[0]) == tag(poor.digest)


def test_what_two_replicas_died_of_is_refused_and_its_owner_is_told(
    site: Site, client: Pillion, tmp_path: Path
) -> None:
    instance = site.launch(client, regions=["eu-1", "us-1"], replicas=2)
    captain = attached(client, "captain", instance, tmp_path)
    before = site.engines(instance)
    for engine in before:
        engine.go_wrong(crash_on="boom")
    with pytest.raises(UnavailableError) as died:
        ask(client, captain.aliases[0], "boom")
    assert "Two replicas were lost" in str(died.value)
    [event] = until(
        lambda: [e for e in client.adapters.events("captain") if e.kind == "adapter_quarantined"],
        "its owner is told",
    )
    assert "Two replicas died" in event.detail["detail"]
    explained = client.adapters.explain("captain")
    assert (explained.served, "two replicas died" in explained.summary) == (False, True)
    until(lambda: ask(client, "tiny") == tag(None), "the engines are back")
    version = client.adapters.add_version("captain", adapter_file(tmp_path, 99))
    client.adapters.wait_live("captain", version.version)
    assert until(lambda: ask(client, captain.aliases[0]), "other bytes are not refused") == tag(
        version.digest
    )
    assert not any(engine.process.is_running() for engine in before)


def test_a_stream_whose_client_leaves_ends_in_the_engine(site: Site, client: Pillion, tmp_path: Path) -> None:
    instance = site.launch(client, "slow")
    captain = attached(client, "captain", instance, tmp_path, "slow")
    [engine] = site.engines(instance)
    for model in ("slow", captain.aliases[0]):
        stream = client.chat.stream(model, [{"role": "user", "content": "hi"}], max_tokens=30_000)
        next(stream)
        assert in_flight(engine) == 1
        stream.close()  # ten minutes before its end
        until(lambda: in_flight(engine) == 0, "nothing in flight", timeout=10)
    assert engine.process.is_running()
