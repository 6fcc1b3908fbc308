"""Regions that go away and come back, under traffic."""

from __future__ import annotations

from pathlib import Path

import psutil

from pillion.sdk import Pillion

from .site import Site, adapter_file, until
from .test_replicas import BOTH, regions
from .traffic import traffic


def agents(site: Site, instance: int, region: str) -> list[psutil.Process]:
    found = site.processes("agent")
    return [agent for agent in found if f"r{instance}-{region}-" in " ".join(agent.cmdline())]


def test_a_region_that_goes_away_and_comes_back(site: Site, client: Pillion, tmp_path: Path) -> None:
    instance = site.launch(client, "slow", regions=BOTH, replicas=2)
    made = {
        "free": client.adapters.upload("free", "slow", adapter_file(tmp_path, 1)),
        "bound": client.adapters.upload("bound", "slow", adapter_file(tmp_path, 2), region="us-1"),
    }
    for name in made:
        client.adapters.attach(name, instance)
    for name in made:
        client.adapters.wait_ready(name, instance)
    free, bound = (made[name].aliases[0] for name in ("free", "bound"))
    voice = {name: f"sim slow {str(adapter.digest)[:12]} t1 t2 t3 t4" for name, adapter in made.items()}
    with traffic(client, ["slow", free, bound]) as asked:
        asked.goes_on("slow", free, bound)
        away = agents(site, instance, "us-1")
        assert len(away) == 1
        for agent in away:
            agent.suspend()  # nobody starts its engine again
        try:
            site.engines(instance)[1].process.kill()
            until(lambda: asked.answers[bound]["no_healthy_replica"] > 5, "an honest error")
            asked.goes_on("slow", free, more=40)
        finally:
            for agent in away:
                agent.resume()
        served = asked.answers[bound][voice["bound"]]
        until(lambda: asked.answers[bound][voice["bound"]] > served, "it is filled again")
        until(lambda: regions(site, client, free) == set(BOTH), "traffic in both regions")
        asked.goes_on("slow", free, bound)
    assert set(asked.answers["slow"]) == {"sim slow base t1 t2 t3 t4"}
    assert set(asked.answers[free]) == {voice["free"]}
    assert set(asked.answers[bound]) <= {voice["bound"], "no_healthy_replica", "adapter_loading"}
    told = [event.kind for event in client.instances.events(instance)]
    assert told.count("engine_down") == 1
    assert told.count("agent_down") == told.count("agent_restarted") == 0
