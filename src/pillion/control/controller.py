"""The controller: reads wishes, hears facts, and moves facts towards wishes. Publishes routing snapshots on the way.

Every control publishes; only the holder of the lease acts. Grants carry its fencing token, so that agents refuse
those of a controller that lost the lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import structlog

from pillion.control import plan
from pillion.control.agents import AgentUnreachableError
from pillion.control.changes import Changes
from pillion.control.context import Control
from pillion.control.routes import routes_of
from pillion.core.replica import Grant, GrantEntry, GroupSpec, Replica
from pillion.store.leases import LeaseLostError
from pillion.store.rows import Attachment, Instance, InstanceState, Lease, RoutedAdapter
from pillion.store.transaction import Tx

log = structlog.get_logger(__name__)

OBSERVE_S = 1.0
LEASE = "controller"
LEASE_S = 10.0
SEQUENCE_BITS = 32
BACKOFF_MAX_S = 60.0


@dataclass
class Wishes:
    """One consistent read of what is wanted, with what is going away."""

    instances: dict[int, Instance] = field(default_factory=dict)
    attachments: list[Attachment] = field(default_factory=list)
    adapters: dict[int, RoutedAdapter] = field(default_factory=dict)


@dataclass
class _Backoff:
    failures: int = 0
    until: float = 0.0


class Controller:
    """One per control process. `run` until cancelled; `published` is for use cases that answer after gateways know."""

    def __init__(self, control: Control, holder: str) -> None:
        self._control = control
        self._holder = holder
        self._replicas: list[Replica] = []
        self._wishes = Wishes()
        self._lease: Lease | None = None
        self._sequence = 0
        self._sent: dict[str, tuple[GrantEntry, ...]] = {}
        self._backoff: dict[tuple[int, str], _Backoff] = {}
        self._retries: dict[str, set[str]] = {}
        self._publishing = asyncio.Lock()
        self.ticked = Changes()

    # What use cases ask.

    def replicas_of(self, instance: int) -> list[Replica]:
        return [r for r in self._replicas if r.instance == instance]

    async def published(self) -> list[str]:
        """Publish what is committed and wait for the gateways; the names of those that have not applied it."""
        version = await self.publish()
        return await self._control.gateways.acknowledged(version)

    def retry(self, instance: int, engine_name: str) -> None:
        """Forget that this version failed on the replicas of an instance, and try again."""
        for replica in self.replicas_of(instance):
            self._retries.setdefault(replica.id, set()).add(engine_name)
            self._sent.pop(replica.id, None)

    async def end_all(self) -> None:
        """Stop every replica and wait for them; the wishes stay, so that the next start brings them back."""
        await self._observe()
        groups = {(r.instance, r.region) for r in self._replicas}
        await asyncio.gather(*(self._delete(*group) for group in groups))

    async def release(self) -> None:
        """Let another control act at once."""
        if self._lease is not None:
            async with self._control.db.transaction() as tx:
                await tx.leases.release(LEASE, self._lease.token)

    # The loops.

    async def run(self) -> None:
        """Observe, publish, act; again at every change and at least every second. Never ends by itself."""
        control = self._control
        while True:
            seen = control.changes.count
            try:
                await self._observe()
                await self.publish()
                if await self._lead():
                    await self._act()
            except LeaseLostError:
                log.warning("lease_lost", holder=self._holder)
                self._lease = None
            except Exception:
                log.exception("controller_tick_failed")
            self.ticked.notify()
            await control.changes.wait(seen, OBSERVE_S)

    async def publish(self) -> int:
        """Read the wishes, put the facts beside them, publish; the snapshot's version."""
        async with self._publishing:
            control = self._control
            rows = await control.db.snapshot_rows()
            keys, models, adapters, instances = routes_of(
                rows, self._replicas, control.agents.facts, control.catalogue
            )
            return control.publisher.publish(keys, models, adapters, instances)

    async def _observe(self) -> None:
        found: list[Replica] = []
        for provisioner in self._control.provisioners.values():
            found.extend(await provisioner.observe())
        self._replicas = found
        self._control.agents.follow(found)

    async def _lead(self) -> bool:
        now = self._control.clock()
        if self._lease is not None and self._lease.expires_at - now > LEASE_S / 2:
            return True
        async with self._control.db.transaction() as tx:
            if self._lease is not None:
                await tx.leases.renew(LEASE, self._lease.token, now, LEASE_S)
                self._lease = msgspec.structs.replace(self._lease, expires_at=now + LEASE_S)
                return True
            self._lease = await tx.leases.acquire(LEASE, self._holder, now, LEASE_S)
        self._sequence, self._sent = 0, {}
        return self._lease is not None

    async def _act(self) -> None:
        self._wishes = await self._read_wishes()
        await self._move_groups()
        await self._send_grants()
        await self._record()

    async def _read_wishes(self) -> Wishes:
        async with self._control.db.read() as tx:
            instances = await tx.everyone.unfinished_instances()
            attachments = await tx.everyone.attachments()
            adapters = await tx.everyone.routed_adapters()
        return Wishes({i.id: i for i in instances}, attachments, {a.adapter.row_id: a for a in adapters})

    # Processes.

    async def _move_groups(self) -> None:
        wanted = plan.groups(self._wishes.instances.values())
        observed: dict[tuple[int, str], list[Replica]] = {}
        for replica in self._replicas:
            observed.setdefault((replica.instance, replica.region), []).append(replica)
        changed = False
        for key, group in wanted.items():
            if _differs(group, observed.get(key, ())) and self._may_try(key):
                changed |= await self._apply(key, group)
            elif not _differs(group, observed.get(key, ())):
                self._backoff.pop(key, None)
        for key in observed.keys() - wanted.keys():
            changed |= await self._delete(*key)
        if changed:
            await self._observe()

    def _may_try(self, key: tuple[int, str]) -> bool:
        return self._backoff.get(key, _Backoff()).until <= self._control.clock()

    async def _apply(self, key: tuple[int, str], group: GroupSpec) -> bool:
        """Apply a group, then leave it time: longer each time that it did not hold."""
        backoff = self._backoff.setdefault(key, _Backoff())
        backoff.failures += 1
        backoff.until = self._control.clock() + min(2.0 ** (backoff.failures - 1), BACKOFF_MAX_S)
        provisioner = self._control.provisioners.get(group.region)
        if provisioner is None:
            log.error("region_unknown", region=group.region, instance=group.instance)
            return False
        await provisioner.apply(group)
        return True

    async def _delete(self, instance: int, region: str) -> bool:
        provisioner = self._control.provisioners.get(region)
        if provisioner is None:
            return False
        await provisioner.delete(instance, region)
        return True

    # Adapters.

    async def _send_grants(self) -> None:
        assert self._lease is not None
        by_instance: dict[int, list[Attachment]] = {}
        for attachment in self._wishes.attachments:
            by_instance.setdefault(attachment.instance_id, []).append(attachment)
        sends = []
        for replica in self._replicas:
            status = self._control.agents.facts.get(replica.id)
            if status is None:
                self._sent.pop(replica.id, None)  # whoever comes back may have missed some
                continue
            entries = plan.entries(
                replica.region, by_instance.get(replica.instance, ()), self._wishes.adapters
            )
            if self._sent.get(replica.id) == entries:
                continue
            deadlines = [
                a.drain_deadline_s for a in by_instance.get(replica.instance, ()) if a.state == "detaching"
            ]
            self._sequence += 1
            grant = Grant(
                replica=replica.id,
                version=(self._lease.token << SEQUENCE_BITS) + self._sequence,
                entries=entries,
                drain_deadline_s=min(deadlines, default=self._control.settings.drain_s),
                retry=tuple(sorted(self._retries.pop(replica.id, ()))),
            )
            sends.append(self._grant(replica, grant))
        await asyncio.gather(*sends)

    async def _grant(self, replica: Replica, grant: Grant) -> None:
        try:
            await self._control.agents.grant(replica, grant)
        except AgentUnreachableError as error:
            log.warning("grant_not_sent", replica=replica.id, error=str(error))
            self._retries.setdefault(replica.id, set()).update(grant.retry)
            return
        self._sent[replica.id] = grant.entries

    # What became of it.

    async def _record(self) -> None:
        """Write down states that changed, and forget what is gone."""
        states = self._instance_states()
        moves = self._attachment_moves()
        if not states and not moves:
            return
        assert self._lease is not None
        now = self._control.clock()
        async with self._control.db.transaction() as tx:
            await tx.leases.check(LEASE, self._lease.token)
            for instance, state in states:
                await self._record_instance(tx, instance, state, now)
            for attachment, facts in moves:
                await self._record_attachment(tx, attachment, facts, now)
        self._control.changes.notify()

    async def _record_instance(self, tx: Tx, instance: Instance, state: InstanceState, now: float) -> None:
        await tx.instances.set_state(instance.account_id, instance.id, state, now)
        await tx.events.append(
            instance.account_id,
            at=now,
            kind=f"instance_{state}",
            subject=f"instance:{instance.id}",
            detail={"before": instance.state},
        )

    async def _record_attachment(
        self, tx: Tx, attachment: Attachment, facts: plan.AttachmentFacts, now: float
    ) -> None:
        account, failure = attachment.account_id, facts.failure
        if facts.state == "detaching":
            await tx.attachments.delete(account, attachment.id)
        else:
            await tx.attachments.update_state(
                account,
                attachment.id,
                state=facts.state,
                ready=facts.ready,
                wanted=facts.wanted,
                error=failure,
            )
        if facts.state != attachment.state or facts.state == "detaching":
            adapter = self._wishes.adapters[attachment.adapter_row_id].adapter
            await tx.events.append(
                account,
                at=now,
                kind="detached" if facts.state == "detaching" else f"attachment_{facts.state}",
                subject=f"adapter:{adapter.id}",
                detail={"instance": attachment.instance_id, "error": failure.message if failure else None},
            )

    def _instance_states(self) -> list[tuple[Instance, InstanceState]]:
        found = []
        for instance in self._wishes.instances.values():
            state = plan.instance_state(instance, self.replicas_of(instance.id), self._control.agents.facts)
            if state != instance.state:
                found.append((instance, state))
        return found

    def _attachment_moves(self) -> list[tuple[Attachment, plan.AttachmentFacts]]:
        """Attachments whose facts have moved. Those of an instance that has ended are gone with it."""
        found = []
        for attachment in self._wishes.attachments:
            adapter = self._wishes.adapters[attachment.adapter_row_id]
            instance = self._wishes.instances.get(attachment.instance_id)
            if instance is None:
                found.append((attachment, plan.AttachmentFacts("detaching", 0, 0, None, True)))
                continue
            region = adapter.adapter.region
            facts = plan.attachment_facts(
                attachment,
                adapter,
                plan.in_region(self.replicas_of(instance.id), region),
                self._control.agents.facts,
                plan.expected_in(plan.spec_of(instance), region),
            )
            if _changed(attachment, facts):
                found.append((attachment, facts))
        return found


def _differs(group: GroupSpec, replicas: Iterable[Replica]) -> bool:
    found = list(replicas)
    return len(found) != group.replicas or any(not r.alive or r.generation != group.generation for r in found)


def _changed(attachment: Attachment, facts: plan.AttachmentFacts) -> bool:
    if attachment.state == "detaching":
        return facts.gone
    code = facts.failure.code if facts.failure else None
    before = (attachment.state, attachment.ready, attachment.wanted, attachment.error_code)
    return before != (facts.state, facts.ready, facts.wanted, code)
