"""The controller: reads wishes, hears facts, and moves facts towards wishes. Publishes routing snapshots on the way.

Every control publishes; only the holder of the lease acts. Grants carry its fencing token, so that agents refuse
those of a controller that lost the lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import msgspec
import structlog

from pillion.control import attachments, charges, flips, moves, on_demand, plan
from pillion.control.changes import Changes
from pillion.control.context import Control
from pillion.control.failures import Failures
from pillion.control.grants import Due, Grants
from pillion.control.groups import Groups
from pillion.control.mirror import Mirror
from pillion.control.notices import Notices
from pillion.control.on_demand import Permits
from pillion.control.routes import Routed
from pillion.control.runs import RunLog
from pillion.control.wishes import Wishes
from pillion.core.errors import UnavailableError
from pillion.core.names import engine_name
from pillion.core.replica import Replica, ReplicaStatus
from pillion.core.tiers import Caps
from pillion.store.leases import LeaseLostError
from pillion.store.rows import Attachment, Instance, InstanceState, Lease, RoutedAdapter, SnapshotRows
from pillion.store.transaction import Tx

log = structlog.get_logger(__name__)

OBSERVE_S = 1.0
LEASE = "controller"
LEASE_S = 10.0
SETTLING_S = 2.0  # in so long gateways find a control that has just begun
HAND_OVER_S = 15.0  # so long what was replaced is left where it is for a gateway that does not know it yet
GATEWAYS_S = 0.5  # how long `ready` waits for gateways: one that hangs must not hold up the rest


class Controller:
    """One per control process. `run` until cancelled; `published` is for use cases that answer after gateways know."""

    def __init__(self, control: Control, holder: str) -> None:
        self._control = control
        self._holder = holder
        self._groups = Groups(control.provisioners, control.clock, control.changes)
        self._grants = Grants(control.agents, control.changes)
        self._failures = Failures()
        self._runs = RunLog(control, LEASE)
        self._notices = Notices(control, LEASE)
        self._wishes = Wishes()
        self._flips: list[flips.Flip] = []
        self._turns: frozenset[int] = frozenset()
        self._routed: dict[str | None, tuple[SnapshotRows | None, frozenset[str]]] = {}
        self._settled_at = 0.0
        self._handing_over: tuple[int, float] | None = None  # a snapshot's version, and until when at most
        self._lease: Lease | None = None
        self._mirror = Mirror(control.db, lambda: asyncio.get_running_loop().time())
        self._routed_before = Routed()
        self._rows: SnapshotRows | None = None
        self._adapters = self._mirror.adapters
        self._permits = Permits(b"")
        self._written, self._read_at = -1, 0.0
        self._publishing = asyncio.Lock()
        self.ticked = Changes()

    # What use cases ask.

    def replicas_of(self, instance: int) -> list[Replica]:
        return [r for r in self._groups.replicas if r.instance == instance]

    def tries(self) -> dict[tuple[int, str], float]:
        """By instance and region: when what is down there is begun again (seconds since the epoch)."""
        return self._groups.tries

    async def published(self) -> list[str]:
        """Publish what is committed and wait for the gateways; the names of those that have not applied it."""
        version = await self.publish()
        return await self._control.gateways.acknowledged(version)

    async def end_all(self) -> None:
        """Stop every replica and wait for them; the wishes stay, so that the next start brings them back."""
        await self._groups.end_all()

    async def release(self) -> None:
        """Let another control act at once. Where the database is away the lease runs out by itself."""
        if self._lease is None:
            return
        try:
            async with self._control.db.transaction() as tx:
                await tx.leases.release(LEASE, self._lease.token)
        except UnavailableError as error:
            log.warning("lease_not_released", error=error.message)

    # The loops.

    async def run(self) -> None:
        """Observe, publish, act; again at every change and at least every second. Never ends by itself."""
        changes = self._control.changes
        try:
            while True:
                seen, began = changes.count, asyncio.get_running_loop().time()
                await self._tick()
                self._control.counts.ticked(asyncio.get_running_loop().time() - began)
                self._control.counts.leads = self._lease is not None
                self.ticked.notify()
                await changes.wait(seen, OBSERVE_S)
        finally:
            await self._groups.close()
            await self._grants.close()

    async def publish(self) -> int:
        """Read the wishes, put the facts beside them, publish; the snapshot's version."""
        async with self._publishing:
            return self._publish(await self._read())

    async def _read(self) -> SnapshotRows:
        """What is wanted, from the database where it may have changed there: here, or by another control."""
        written, now = self._control.changes.written, asyncio.get_running_loop().time()
        if not self._permits.key:
            async with self._control.db.transaction() as tx:
                self._permits = Permits(
                    await on_demand.key(tx, self._control.choice), self._control.settings.caps
                )
        stale = written != self._written or now - self._read_at >= OBSERVE_S
        if stale or self._rows is None:
            self._rows = await self._mirror.read()
            self._adapters = self._mirror.adapters
            self._written, self._read_at = written, now
        return self._rows

    def _publish(self, rows: SnapshotRows) -> int:
        control = self._control
        facts = control.agents.presumed()
        content = self._routed_before.content(
            self._mirror.parts,
            self._groups.replicas,
            facts,
            control.catalogue,
            self._permits,
            self._mirror.last,
        )
        return control.publisher.publish(charges.priced(control, content, rows.prices))

    async def _tick(self) -> None:
        try:
            self._control.agents.follow(await self._groups.observe())
            await self.publish()
            if await self._lead():
                await self._act()
        except LeaseLostError:
            log.warning("lease_lost", holder=self._holder)
            self._lease = None
        except UnavailableError as error:
            log.warning("database_away", error=error.message)
            if self._rows is not None:  # replicas come and go meanwhile, and gateways have to know
                self._publish(self._rows)
        except Exception:
            self._control.counts.ticks_failed += 1
            log.exception("controller_tick_failed")

    async def _lead(self) -> bool:
        now = self._control.clock()
        if self._lease is not None and self._lease.expires_at - now > LEASE_S / 2:
            return True
        if self._lease is not None:
            async with self._control.db.transaction() as tx:
                await tx.leases.renew(LEASE, self._lease.token, now, LEASE_S)
            self._lease = msgspec.structs.replace(self._lease, expires_at=now + LEASE_S)
            return True
        async with self._control.db.transaction() as tx:
            acquired = await tx.leases.acquire(LEASE, self._holder, now, LEASE_S)
        self._lease = acquired  # ours once it is committed, and not where nobody knows whether it is
        if self._lease is not None:
            await self._grants.begin(self._lease.token)
            self._failures = Failures()
            self._runs.forget()
            self._notices.forget()
            self._settled_at = asyncio.get_running_loop().time() + SETTLING_S
        return self._lease is not None

    async def _act(self) -> None:
        assert self._rows is not None  # published just before
        self._wishes = Wishes(
            {instance.id: instance for instance in self._rows.instances},
            self._rows.attachments,
            self._adapters.by_row,
            self._staying(self._rows),
            list(self._adapters.moving.values()),
        )
        self._groups.move(plan.groups(self._wishes.instances.values()))
        facts = self._forgive()
        fleet = flips.Fleet(self._wishes.instances, self._wishes.attachments, self._groups.replicas, facts)
        self._flips = flips.look(self._wishes.moving, fleet)
        self._turns = flips.in_turn(self._flips)
        await self._hand_over()
        granted = await self._grants.send(self._groups.replicas, self._due)
        self._control.counts.grants += len(granted)
        for replica, taken in granted.items():
            self._failures.sent(replica, taken.retry)
        assert self._lease is not None
        await self._notices.record(self._lease, self._wishes.instances, self._groups.replicas, facts)
        await self._record(facts)
        await self._runs.record(self._lease, self._wishes.instances, self._groups.replicas, facts)
        await self._settle_flips()

    def _staying(self, rows: SnapshotRows) -> dict[str, RoutedAdapter]:
        """Of what replicas have, adapters whose time to live is not over."""
        facts, now = self._control.agents.facts, self._control.clock()
        ids = {row.engine_name.partition("@")[0] for status in facts.values() for row in status.adapters}
        found = (adapter for id in ids if (adapter := self._adapters.by_id.get(id)) is not None)
        return on_demand.staying(found, rows.attachments, now)

    async def _hand_over(self) -> None:
        """No version leaves a grant before gateways know that another has taken its place."""
        before, self._routed = self._routed, {}
        gone = False
        for account, part in self._mirror.parts.items():
            seen, names = before.get(account, (None, frozenset()))
            if seen is not part:
                names, old = plan.routed(part.adapters), names
                gone = gone or not old <= names
            self._routed[account] = part, names
        if gone:
            version = await self.publish()
            await self._control.gateways.acknowledged(version)
            self._handing_over = version, asyncio.get_running_loop().time() + HAND_OVER_S

    def _settling(self) -> bool:
        """Whether gateways may not have heard yet what was decided, here or by a control before this one."""
        now = asyncio.get_running_loop().time()
        if self._handing_over is not None:
            version, until = self._handing_over
            if now < until and self._control.gateways.behind(version):
                return True
            self._handing_over = None
        return now < self._settled_at

    def _due(self, replica: Replica) -> Due | None:
        settings, adapters = self._control.settings, self._wishes.adapters
        here, status = self._wishes.on(replica.instance), self._control.agents.facts.get(replica.id)
        held = status.adapters if status else ()
        entries = plan.entries(replica.region, here, adapters, self._turns, self._caps)
        if self._settling() and plan.strands(here, adapters, held, entries):
            return None
        again = plan.asked_again(here, adapters, held)
        due = Due(
            entries,
            settings.drain_s,
            plan.leaving(here, adapters, held, entries, settings.flip_drain_s),
            tuple(sorted(again.union(self._failures.retry(replica.id)))),
        )
        instance = self._wishes.instances.get(replica.instance)
        if instance is None or (terms := on_demand.terms(instance, self._permits.key)) is None:
            return due
        granted = {entry.engine_name for entry in entries}
        drop = on_demand.dropped(instance, replica, held, granted, self._wishes.staying)
        if self._settling() and any(name.partition("@")[0] in self._wishes.staying for name in drop):
            return None
        return replace(due, on_demand=terms, drop=drop)

    def _caps(self, account: str) -> Caps:
        tiers = {} if self._rows is None else self._rows.tiers
        return self._control.settings.caps[tiers.get(account, "shared")]

    def _forgive(self) -> dict[str, ReplicaStatus]:
        """The facts, without failures that were told before and of which the adapter is asked for again."""
        facts, replicas = self._control.agents.facts, self._groups.replicas
        self._failures.forget(facts, {replica.id for replica in replicas})
        for attachment in self._wishes.attachments:
            name = plan.name_of(self._wishes.adapters[attachment.adapter_row_id])
            here = [facts[r.id] for r in self.replicas_of(attachment.instance_id) if r.id in facts]
            if name is not None and attachment.state == "failed":
                self._failures.tell(name, here)
            elif name is not None and attachment.state == "attaching":
                self._failures.ask_again(name, here)
        for adapter in self._wishes.moving:
            for version in (adapter.wanted, adapter.canary):
                if version is not None:
                    self._failures.ask_again(engine_name(adapter.adapter.id, version.digest), facts.values())
        return {id: self._failures.forgiven(status) for id, status in facts.items()}

    # What became of it.

    async def _record(self, facts: Mapping[str, ReplicaStatus]) -> None:
        """Write down states that changed, end what is over, and forget what is gone."""
        now = self._control.clock()
        states = self._wishes.instance_states(self._groups.replicas, facts, self._groups.unseen)
        changed = self._wishes.attachment_moves(self._groups.replicas, facts, self._groups.unseen)
        over = plan.ended(self._wishes.attachments, now)
        settled = moves.settled(self._wishes.attachments)
        if not states and not changed and not over and not settled:
            return
        if any(move.made for move in settled):
            await self._control.gateways.acknowledged(await self.publish())
        elif any(state == "running" for _, state in states) or any(m.state == "ready" for _, m in changed):
            # Who sees it may call at once.
            await self._control.gateways.acknowledged(await self.publish(), GATEWAYS_S)
        assert self._lease is not None
        async with self._control.db.transaction() as tx:
            await tx.leases.check(LEASE, self._lease.token)
            moved = [*(found for found, _ in changed), *over, *(move.attachment for move in settled)]
            sources = (move.source for move in settled)
            of = (row.instance_id for row in moved)
            await tx.everyone.lock_instances([*(instance.id for instance, _ in states), *of, *sources])
            for instance, state in states:
                await self._record_instance(tx, instance, state, now)
            for attachment, found in changed:
                await self._record_attachment(tx, attachment, found, now)
            for attachment in sorted(over, key=lambda row: row.adapter_row_id):
                await self._end(tx, attachment, now)
            for move in settled:
                await moves.settle(tx, move, self._subject(move.attachment), now)
        self._control.changes.notify()

    async def _settle_flips(self) -> None:
        """What all have that must goes live in one step; what cannot is given up; what holds others up goes last."""
        now = self._control.clock()
        over = [flip for flip in self._flips if flip.made or flip.failed]
        stuck = flips.stuck(self._flips, now)
        if not over and not stuck:
            return
        assert self._lease is not None
        async with self._control.db.transaction() as tx:
            await tx.leases.check(LEASE, self._lease.token)
            # In the order in which all lock adapters.
            for flip in sorted([*stuck, *over], key=lambda flip: flip.adapter.adapter.row_id):
                if flip in over:
                    await flips.settle(tx, flip, now)
                else:
                    await flips.requeue(tx, flip, now)
        for flip in over:
            self._failures.tell(flip.engine_name, self._control.agents.facts.values())
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
            kind = "detached"
            done = await self._forget(tx, attachment)
        else:
            kind = f"attachment_{facts.state}"
            done = await tx.attachments.update_state(
                account,
                attachment.id,
                state=facts.state,
                ready=facts.ready,
                wanted=facts.wanted,
                error=failure,
            )
        if done and (kind == "detached" or facts.state != attachment.state):
            detail: dict[str, object] = {"instance": attachment.instance_id}
            if failure is not None:
                detail["error"] = failure.message
            await self._event(tx, attachment, kind, detail, now)

    async def _forget(self, tx: Tx, attachment: Attachment) -> bool:
        """Its slot is free. False where it was asked for again since the wishes were read."""
        ended = attachment.instance_id not in self._wishes.instances
        if ended and attachment.state != "detaching":
            await attachments.keep_end(tx, attachment)
        return await tx.attachments.delete(attachment.account_id, attachment.id, in_any_state=ended)

    async def _end(self, tx: Tx, attachment: Attachment, now: float) -> None:
        """Its time to live is over, unless it was given more since the wishes were read."""
        row = await tx.attachments.get(attachment.account_id, attachment.id, lock=True)
        if row is not None and plan.ended([row], now):
            await tx.attachments.mark_detaching(row.account_id, row.id)
            left = await tx.attachments.list(row.account_id, adapter_row_id=row.adapter_row_id)
            if all(other.state == "detaching" or plan.ended([other], now) for other in left):
                await tx.adapters.ended(row.account_id, row.adapter_row_id, row.expires_at)
            await self._event(tx, row, "attachment_expired", {"instance": row.instance_id}, now)

    async def _event(
        self, tx: Tx, attachment: Attachment, kind: str, detail: Mapping[str, object], now: float
    ) -> None:
        subject = self._subject(attachment)
        await tx.events.append(attachment.account_id, at=now, kind=kind, subject=subject, detail=detail)

    def _subject(self, attachment: Attachment) -> str:
        return f"adapter:{self._wishes.adapters[attachment.adapter_row_id].adapter.id}"
