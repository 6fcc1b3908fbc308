"""Explaining an adapter to its owner: what is known of it, gathered."""

from __future__ import annotations

from collections.abc import Sequence

from pillion.control import lookup
from pillion.control.attachments import obstacles
from pillion.control.context import Control
from pillion.control.explain import Explanation, Known, explain
from pillion.control.flips import Fleet, Spread, spread
from pillion.control.keys import Principal
from pillion.control.plan import spec_of
from pillion.core.names import engine_name
from pillion.store.rows import Adapter, AdapterVersion, Instance, VersionBytes
from pillion.store.transaction import Tx


async def explained(control: Control, who: Principal, ref: str) -> Explanation:
    """Where the adapter should be, where it is, why not, and what happens next."""
    async with control.db.read() as tx:
        adapter = await lookup.adapter(tx, who, ref)
        versions = await tx.versions.list(who.account, adapter.row_id)
        attachments = await tx.attachments.list(who.account, adapter_row_id=adapter.row_id)
        instances = await _instances(tx, who, adapter, {row.instance_id for row in attachments})
        live = next((v for v in versions if v.version == adapter.live_version), None)
        now = control.clock()
        why_not = {i.id: obstacles(adapter, live, i) + _pool(i) for i in instances.values()}
        held = {id: await tx.everyone.held_slots(id, now) for id, reasons in why_not.items() if not reasons}
    controller = control.controller
    replicas = [replica for id in instances for replica in controller.replicas_of(id)]
    fleet = Fleet(instances, attachments, replicas, control.agents.facts)
    return explain(
        Known(
            adapter=adapter,
            aliases=lookup.aliases(adapter),
            versions={v.digest: v.version for v in versions},
            attachments=attachments,
            instances=instances,
            why_not=why_not,
            held=held,
            replicas=replicas,
            facts=control.agents.facts,
            tries=controller.tries(),
            now=now,
            coming=_on_its_way(adapter, adapter.wanted_version, versions, fleet),
            canary=_on_its_way(adapter, adapter.canary_version, versions, fleet),
            setback=_setback(adapter, versions),
            refused_until=_refused_until(adapter, live, now),
        )
    )


async def _instances(tx: Tx, who: Principal, adapter: Adapter, wished: set[int]) -> dict[int, Instance]:
    """Those of its base that the caller can use, and where it is attached or loaded, also those that end."""
    found = await tx.instances.list(who.account, pool=True, wanted=True, model=adapter.base_model, limit=1000)
    instances = {instance.id: instance for instance in found}
    for id in wished - instances.keys():
        instance = await tx.instances.get(who.account, id, pool=True)
        if instance is not None:
            instances[id] = instance
    return instances


def _refused_until(adapter: Adapter, live: AdapterVersion | None, now: float) -> float | None:
    """When the quarantine of the live version ends."""
    name, until = adapter.refused_name, adapter.refused_until
    if live is None or until is None or until <= now:
        return None
    return until if name == engine_name(adapter.id, live.digest) else None


def _on_its_way(
    adapter: Adapter, number: int | None, versions: Sequence[AdapterVersion], fleet: Fleet
) -> Spread | None:
    numbered = {v.version: VersionBytes(v.version, v.digest, v.rank, v.size_bytes) for v in versions}
    wanted = numbered.get(number or 0)
    return None if wanted is None else spread(adapter, numbered.get(adapter.live_version or 0), wanted, fleet)


def _setback(adapter: Adapter, versions: Sequence[AdapterVersion]) -> str | None:
    """Why the newest version is not live, where it was to be."""
    newest = max(versions, key=lambda v: v.version, default=None)
    if newest is None or newest.error_message is None:
        return None
    if newest.version in (adapter.live_version, adapter.wanted_version):
        return None
    return f"version {newest.version} did not go live: {newest.error_message} ({newest.error_code})"


def _pool(instance: Instance) -> list[str]:
    """Nothing is attached to a pool. One that loads on demand takes it all the same."""
    if instance.account_id is not None or spec_of(instance).lora.on_demand:
        return []
    return ["shared pool: load it there instead of attaching"]
