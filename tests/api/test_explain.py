"""Explanations through the API: what is there is told, to its owner alone."""

from __future__ import annotations

from typing import Any

from pillion.control import pools
from pillion.core.catalogue import Pool
from tests import adapter_files
from tests.api.site import Site, found, refused
from tests.api.site import site as made_site
from tests.control.world import World, holds, until


async def explained(site: Site, ref: str) -> dict[str, Any]:
    return found(await site.a.get(f"/v1/adapters/{ref}/explain"))


async def test_from_nowhere_to_served_and_back(site: Site) -> None:
    made, adapter = await site.running(), await site.a.adapter()
    nowhere = await explained(site, "mine")
    assert (nowhere["served"], nowhere["places"]) == (False, [])
    assert nowhere["next"] == [f"attach it to an instance that can take it: {made['id']}"]
    await site.attached(site.a, made["id"], adapter)
    there = await explained(site, adapter["id"])
    assert there["summary"] == "mine is served by 2 of 2 replicas."
    (place,) = there["places"]
    assert {r["replica"] for r in place["replicas"]} == {r["id"] for r in made["replicas"]}
    assert [(r["serving"], r["version"]) for r in place["replicas"]] == [(True, 1)] * 2
    for fleet in site.world.fleets.values():
        fleet.only.tell(ready=False, stage="loading")
    later = await until(site.control, lambda: explained(site, "mine"), lambda e: not e["served"])
    assert "its engine is loading" in later["summary"]


async def test_a_region_that_cannot_be_started_says_when_it_is_tried_again(site: Site) -> None:
    made, adapter = await site.running(regions=["local"]), await site.a.adapter()
    await site.attached(site.a, made["id"], adapter)
    site.fleet.apply_error = RuntimeError("no machine")
    site.fleet.kill(site.fleet.only)
    told = await until(
        site.control,
        lambda: explained(site, "mine"),
        lambda e: "started again at" in str(e["places"][0]["replicas"][0]["next"]),
    )
    assert "its agent is not running" in told["summary"]


async def test_others_cannot_ask(site: Site) -> None:
    await site.a.adapter()
    refused(await site.b.get("/v1/adapters/mine/explain"), 404, "not_found")


async def test_on_a_pool_nothing_of_others_shows(world: World) -> None:
    world.catalogue = type(world.catalogue)(
        world.catalogue.regions,
        world.catalogue.models,
        (Pool("tiny", on_demand=True),),
        world.catalogue.gpu_types,
    )
    async with made_site(world) as site:
        await pools.ensure(site.control)
        await holds(site.control, lambda: any(f.agents for f in world.fleets.values()), "a pool")
        mine, theirs = await site.a.adapter(), await site.b.adapter("theirs")
        found(await site.b.post(f"/v1/adapters/{theirs['id']}/load", {"pin": True}))
        told = await explained(site, mine["id"])
        assert [place["wish"] for place in told["places"]] == ["on_demand"]
        assert theirs["id"] not in str(told)


async def test_a_version_on_its_way_says_how_far_it_is(site: Site) -> None:
    made, adapter = await site.running(), await site.a.adapter()
    await site.attached(site.a, made["id"], adapter)
    for fleet in site.world.fleets.values():
        fleet.only.hold = True
    files = {"file": ("adapter_model.safetensors", adapter_files.weights(seed=99))}
    found(await site.a.manage.post("/v1/adapters/mine/versions", files=files))
    told = await explained(site, "mine")
    assert (told["version"], told["wanted_version"], told["served"]) == (1, 2, True)
    assert told["next"] == ["version 2 goes live once all that must have it do: 0 of 2 replicas have it"]
    for fleet in site.world.fleets.values():
        fleet.only.hold = False
        fleet.only.converge()
    later = await until(site.control, lambda: explained(site, "mine"), lambda e: e["version"] == 2)
    assert (later["wanted_version"], later["next"]) == (None, [])
