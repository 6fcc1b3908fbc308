"""Shared pools: operator-owned instances that the configuration asks for (SPEC §4)."""

from __future__ import annotations

import msgspec

from pillion.control.context import Control
from pillion.control.plan import spec_of
from pillion.core import launch as rules
from pillion.core.launch import InstanceSpec
from pillion.core.replica import LoraSpec

LOCK = "pools"


async def ensure(control: Control) -> None:
    """Launch the pools that are configured and do not run; stop those that are no longer configured.

    Of controls that start at once the second finds what the first launched.
    """
    wanted = {
        pool.model: _spec(control, pool.model, index) for index, pool in enumerate(control.catalogue.pools)
    }
    async with control.db.transaction() as tx:
        await tx.leases.acquire(LOCK, LOCK, control.clock(), 0.0)  # held until commit: others wait here
        running = await tx.instances.list(None, wanted=True, limit=1000)
        for row in running:
            if wanted.get(row.model) != spec_of(row):
                await tx.instances.stop(None, row.id, control.clock(), reason="configuration_changed")
        kept = {row.model for row in running if wanted.get(row.model) == spec_of(row)}
        for model, spec in wanted.items():
            if model not in kept:
                await tx.instances.create(
                    None, model=model, spec=msgspec.to_builtins(spec), now=control.clock()
                )
    control.changes.notify()


def _spec(control: Control, name: str, index: int) -> InstanceSpec:
    pool, model = control.catalogue.pools[index], control.catalogue.model(name)
    assert model is not None  # checked with the configuration
    regions = {region.name: region for region in control.catalogue.regions}
    placement = rules.place(list(regions.values()), None, pool.replicas)
    return InstanceSpec(
        source=model.source,
        kind=model.kind,
        engine=model.engine,
        placement=placement,
        lora=LoraSpec(
            enabled=model.lora,
            max_adapters=pool.max_adapters,
            max_rank=control.settings.max_rank,
            on_demand=pool.on_demand,
        ),
        gpu_type=rules.default_gpu(regions, placement, control.catalogue.gpu_types),
        engine_options=dict(model.options),
    )
