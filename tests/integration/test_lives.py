"""Adapters moved, detached and deleted under traffic, as real processes; and what is told of it meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from pillion.sdk import Pillion
from pillion.sdk.errors import ConflictError, NotFoundError
from pillion.sdk.types import Adapter, Event

from .site import Site, adapter_file, tag, until
from .traffic import traffic


def attached(
    client: Pillion, name: str, instance: int, folder: Path, seed: int, base: str = "tiny"
) -> Adapter:
    client.adapters.upload(name, base, adapter_file(folder, seed))
    client.adapters.attach(name, instance)
    client.adapters.wait_ready(name, instance)
    return client.adapters.get(name)


def test_a_move_fails_no_request(site: Site, client: Pillion, tmp_path: Path) -> None:
    first, second = site.launch(client, slots=2), site.launch(client, slots=2)
    moved = attached(client, "moved", first, tmp_path, 1)
    stays = attached(client, "stays", first, tmp_path, 2)
    with traffic(client, [moved.aliases[0], stays.aliases[0]]) as asked:
        for source, target in ((first, second), (second, first), (first, second)):
            asked.goes_on(moved.aliases[0])
            client.adapters.move("moved", source, target)
            client.adapters.wait_ready("moved", target)
            client.adapters.wait_gone("moved", source)
        asked.goes_on(moved.aliases[0], stays.aliases[0])
    for adapter in (moved, stays):
        assert set(asked.answers[adapter.aliases[0]]) == {tag(adapter.digest)}
    kinds = [event.kind for event in client.adapters.events("moved")]
    assert kinds.count("moved") == 3
    assert {e["adapters"][0]["name"].partition("@")[0] for e in [site.engines(second)[0].state()]} == {
        moved.id
    }


def test_what_is_deleted_under_traffic_drains_and_others_never_notice(
    site: Site, client: Pillion, tmp_path: Path
) -> None:
    instance = site.launch(client, "slow", slots=3)
    gone = attached(client, "gone", instance, tmp_path, 1, "slow")
    stays = attached(client, "stays", instance, tmp_path, 2, "slow")
    with traffic(client, [gone.aliases[0], stays.aliases[0]]) as asked:
        asked.goes_on(gone.aliases[0], stays.aliases[0], more=5)
        with pytest.raises(ConflictError) as refused:
            client.adapters.delete("gone")
        assert refused.value.code == "adapter_in_use"
        asked.goes_on(gone.aliases[0], more=5)
        assert client.adapters.delete("gone", force=True)["deleted"]
        asked.goes_on(gone.aliases[0], stays.aliases[0], more=5)
        with pytest.raises(NotFoundError):
            client.adapters.get("gone")
    voices = {adapter.name: f"sim slow {str(adapter.digest)[:12]} t1 t2 t3 t4" for adapter in (gone, stays)}
    assert set(asked.answers[stays.aliases[0]]) == {voices["stays"]}
    told = set(asked.answers[gone.aliases[0]])
    assert told <= {voices["gone"], "adapter_loading", "adapter_not_deployed", "model_not_found"}
    assert {voices["gone"], "model_not_found"} <= told
    assert [a["name"].partition("@")[0] for a in site.engines(instance)[0].state()["adapters"]] == [stays.id]


def test_events_are_told_as_they_come(site: Site, client: Pillion, tmp_path: Path) -> None:
    told: list[Event] = []
    key = client.keys.create("watcher", scopes=["manage"])
    watcher = site.client(str(key.key))

    def watch() -> None:
        for event in watcher.events.follow():
            told.append(event)  # noqa: PERF402 (each as it comes)

    watching = threading.Thread(target=watch)
    watching.start()
    instance = site.launch(client)
    attached(client, "captain", instance, tmp_path, 1)
    site.engines(instance)[0].process.kill()
    until(lambda: [e.kind for e in told].count("replica_ready") == 2, "the engine is back")
    kinds = [event.kind for event in told]
    for one, other in (
        ("key_created", "instance_launched"),
        ("instance_launched", "replica_added"),
        ("replica_added", "replica_ready"),
        ("attach_asked", "attachment_ready"),
        ("attachment_ready", "engine_down"),
    ):
        assert kinds.index(one) < kinds.index(other), kinds
    assert len({event.id for event in told}) == len(told)
    of_it = [
        event.kind for event in client.events.list(subject=f"instance:{instance}", kinds=["engine_down"])
    ]
    assert of_it == ["engine_down"]
    client.keys.revoke(key.id)
    watching.join(30)
    assert not watching.is_alive()


def test_who_did_what_is_written_down(site: Site, client: Pillion) -> None:
    made = client.keys.create("app")
    with pytest.raises(NotFoundError):
        client.adapters.delete("nobody")
    refused, created = list(client.events.audit(limit=2))
    assert (created.action, created.made, created.status) == ("create_key", made.id, 201)
    assert (refused.subject, refused.status, refused.error) == ("/v1/adapters/nobody", 404, "not_found")
    assert created.request_id
    headers = {"authorization": f"Bearer {site.admin}"}
    everyone = httpx.get(f"{site.url}/v1/admin/audit", params={"limit": 1000}, headers=headers).json()["data"]
    assert created.id in {row["id"] for row in everyone}


def test_an_explanation_follows_the_facts(site: Site, client: Pillion, tmp_path: Path) -> None:
    instance = site.launch(client)
    client.adapters.upload("captain", "tiny", adapter_file(tmp_path, 1))
    assert client.adapters.explain("captain").places == []
    client.adapters.attach("captain", instance)
    client.adapters.wait_ready("captain", instance)
    explained = client.adapters.explain("captain")
    [place] = explained.places
    [replica] = place.replicas
    assert (explained.served, replica.serving, replica.version) == (True, True, 1)
    assert replica.load_ms is not None
    assert replica.difference is not None
    [engine] = site.engines(instance)
    engine.process.kill()
    down = until(lambda: (e := client.adapters.explain("captain")) and not e.served and e, "it is told")
    assert "engine" in down.summary
    until(lambda: client.adapters.explain("captain").served, "served again")
