"""What crosses accounts: for controllers, the snapshot and the operator. The only statements that may."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import sqlalchemy as sa

from pillion.core.tiers import Tier
from pillion.store.events import chosen, paged
from pillion.store.rows import (
    Adapter,
    ApiKey,
    Attachment,
    AuditRecord,
    Caller,
    Event,
    Instance,
    Invite,
    Job,
    LoggedIn,
    Login,
    Member,
    RegisteredModel,
    RoutedAdapter,
    SnapshotRows,
    VersionBytes,
)
from pillion.store.session import Session
from pillion.store.tables import (
    accounts,
    adapter_labels,
    adapter_versions,
    adapters,
    api_keys,
    attachments,
    audit,
    events,
    instances,
    invites,
    jobs,
    logins,
    members,
    registered_models,
)


class Everyone:
    """`session` is one made for this (`everyone=True`)."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def caller_by_lookup(self, lookup: str) -> Caller | None:
        """Revoked keys too: look at `revoked_at`."""
        return await self._caller(api_keys.c.lookup == lookup)

    async def logged_in(self, digest: str) -> LoggedIn | None:
        """Whose cookie it is; also where it is over."""
        found = await self._session.one(sa.select(logins).where(logins.c.digest == digest), Login)
        if found is None:
            return None
        statement = sa.select(accounts.c.suspended_at).where(accounts.c.id == found.account_id)
        suspended = await self._session.value(statement) is not None
        member = key = None
        if found.member_id is not None:
            member = await self._session.one(
                sa.select(members).where(members.c.id == found.member_id), Member
            )
        if found.key_id is not None:
            key = await self._caller(api_keys.c.id == found.key_id)
        return LoggedIn(found, suspended, member, key)

    async def forget_logins(self, now: float) -> None:
        """Those that are over."""
        await self._session.run(sa.delete(logins).where(logins.c.expires_at <= now))

    async def members_by_email(self, email: str, limit: int, account: str | None = None) -> list[Member]:
        """In accounts that are not suspended, or in the one of this name or id; the oldest first."""
        return await self._people(members.c.email == email, limit, account)

    async def members_by_subject(self, subject: str, limit: int, account: str | None = None) -> list[Member]:
        return await self._people(members.c.subject == subject, limit, account)

    async def invite_by_digest(self, digest: str) -> Invite | None:
        """Accepted ones, and those that are over, too."""
        return await self._session.one(sa.select(invites).where(invites.c.digest == digest), Invite)

    async def active_keys(self, whose: Collection[str | None] | None = None) -> list[ApiKey]:
        statement = sa.select(api_keys).where(api_keys.c.revoked_at.is_(None), _among(api_keys, whose))
        return await self._session.all(statement, ApiKey)

    async def models(self, whose: Collection[str | None] | None = None) -> list[RegisteredModel]:
        statement = sa.select(registered_models).where(_among(registered_models, whose))
        return await self._session.all(statement, RegisteredModel)

    async def instance(self, id: int) -> Instance | None:
        return await self._session.one(sa.select(instances).where(instances.c.id == id), Instance)

    async def instances(self, *, after: int = 0, limit: int = 100) -> list[Instance]:
        statement = sa.select(instances).where(instances.c.id > after).order_by(instances.c.id)
        return await self._session.all(statement.limit(limit), Instance)

    async def lock_instances(self, ids: Iterable[int]) -> None:
        """In the order of their ids, until the transaction ends: before several of their attachments are changed, and before
        these' adapters are. All who do so wait for each other in turn.
        """
        statement = sa.select(instances.c.id).where(instances.c.id.in_(set(ids))).order_by(instances.c.id)
        await self._session.run(statement.with_for_update(key_share=True))

    async def wanted_instances(self) -> list[Instance]:
        statement = sa.select(instances).where(instances.c.wanted == "running")
        return await self._session.all(statement.order_by(instances.c.id), Instance)

    async def unfinished_instances(self, whose: Collection[str | None] | None = None) -> list[Instance]:
        """What a controller has to look at: wanted running, or not yet stopped or failed."""
        ended = instances.c.state.in_(("stopped", "failed"))
        unfinished = (instances.c.wanted == "running") | ~ended
        statement = sa.select(instances).where(unfinished, _among(instances, whose))
        return await self._session.all(statement.order_by(instances.c.id), Instance)

    async def attachments(
        self,
        *,
        instance_id: int | None = None,
        detaching: bool = True,
        whose: Collection[str | None] | None = None,
    ) -> list[Attachment]:
        """All, those on an instance, or of these accounts; without those that are detaching if told so."""
        statement = sa.select(attachments).where(_among(attachments, whose)).order_by(attachments.c.id)
        if instance_id is not None:
            statement = statement.where(attachments.c.instance_id == instance_id)
        if not detaching:
            statement = statement.where(attachments.c.state != "detaching")
        return await self._session.all(statement, Attachment)

    async def canaries(self, instance_id: int) -> set[int]:
        """The adapters (row ids) attached or loaded on the instance that have a canary, which takes a slot more."""
        statement = (
            sa.select(adapters.c.row_id)
            .join(attachments, attachments.c.adapter_row_id == adapters.c.row_id)
            .where(attachments.c.instance_id == instance_id, adapters.c.canary_version.is_not(None))
        )
        return set((await self._session.run(statement)).scalars())

    async def held_slots(self, instance_id: int, now: float, *, but: int = 0) -> int:
        """How many slots of the instance are held at `now`, leaving the attachment with id `but` out.

        One by what is attached or pinned, and another where the adapter has a canary.
        """
        canary = sa.case((adapters.c.canary_version.is_(None), 1), else_=2)
        statement = (
            sa.select(sa.func.coalesce(sa.func.sum(canary), 0))
            .select_from(attachments.join(adapters, adapters.c.row_id == attachments.c.adapter_row_id))
            .where(
                attachments.c.instance_id == instance_id,
                attachments.c.id != but,
                (attachments.c.hold == "attached") | attachments.c.pinned,
                attachments.c.expires_at.is_(None) | (attachments.c.expires_at > now),
            )
        )
        return int(await self._session.value(statement))

    async def routed_adapters(self, whose: Collection[str | None] | None = None) -> list[RoutedAdapter]:
        """All adapters, or these accounts', by row id, with their labels and the versions that engines may have to hold."""
        labels = await self._labels(whose)
        statement = sa.select(adapters).where(_among(adapters, whose))
        for role in _ROLES:
            of = adapter_versions.alias(role)
            same = (of.c.adapter_row_id == adapters.c.row_id) & (
                of.c.version == adapters.c[f"{role}_version"]
            )
            statement = statement.add_columns(*(of.c[name].label(f"{role}_{name}") for name in _BYTES))
            statement = statement.join(of, same, isouter=True)
        found = (await self._session.run(statement.order_by(adapters.c.row_id))).mappings()
        return [_routed(row, labels) for row in found]

    async def digest_uses(self, digest: str) -> int:
        """How many versions, of any account, have these bytes."""
        statement = sa.select(sa.func.count()).select_from(adapter_versions)
        return int(await self._session.value(statement.where(adapter_versions.c.digest == digest)))

    async def digests(self) -> set[str]:
        """All that any version has: what the artifact store must keep."""
        return set((await self._session.run(sa.select(adapter_versions.c.digest).distinct())).scalars())

    async def names_among(self, names: Collection[str]) -> list[tuple[str, str]]:
        """Of these, with the account: those of adapters, their labels, former ones too, and registered models."""
        taken = sa.union(
            *(
                sa.select(column.label("name"), column.table.c.account_id).where(column.in_(names))
                for column in (adapters.c.name, adapter_labels.c.label, registered_models.c.name)
            )
        ).subquery()
        statement = sa.select(taken.c.name, taken.c.account_id).join(
            accounts, (accounts.c.id == taken.c.account_id) & accounts.c.deleted_at.is_(None)
        )
        rows = (await self._session.run(statement.order_by(taken.c.name, taken.c.account_id))).mappings()
        return [(row["name"], row["account_id"]) for row in rows]

    async def claim_job(self, kind: str, holder: str, now: float, *, stale_before: float) -> Job | None:
        """The oldest job of the kind that is queued, or runs but was not touched since `stale_before`."""
        free = (jobs.c.state == "queued") | ((jobs.c.state == "running") & (jobs.c.updated_at < stale_before))
        oldest = sa.select(jobs.c.id).where(jobs.c.kind == kind, free).order_by(jobs.c.created_at, jobs.c.id)
        id = await self._session.value(oldest.limit(1).with_for_update(skip_locked=True))
        if id is None:
            return None
        values = {"state": "running", "holder": holder, "updated_at": now}
        statement = sa.update(jobs).where(jobs.c.id == id).values(**values)
        return await self._session.one(statement.returning(*jobs.c), Job)

    async def events(
        self,
        *,
        after: int = 0,
        limit: int = 100,
        account: str | None = None,
        subject: str | None = None,
        kinds: Collection[str] = (),
        newest: bool = False,
    ) -> list[Event]:
        """Oldest first, or `newest` first: all, or one account's."""
        statement = sa.select(events)
        if account is not None:
            statement = statement.where(events.c.account_id == account)
        return await self._session.all(
            chosen(statement, after=after, limit=limit, subject=subject, kinds=kinds, newest=newest), Event
        )

    async def audit(
        self, *, after: int = 0, limit: int = 100, account: str | None = None, action: str | None = None
    ) -> list[AuditRecord]:
        """Newest first: all, or one account's."""
        statement = sa.select(audit)
        if account is not None:
            statement = statement.where(audit.c.account_id == account)
        if action is not None:
            statement = statement.where(audit.c.action == action)
        return await self._session.all(
            paged(statement, audit.c.id, after=after, limit=limit, newest=True), AuditRecord
        )

    async def snapshot_rows(self, whose: Collection[str | None] | None = None) -> SnapshotRows:
        """Of all accounts, or only of these; None among them is the operator, whose are the pools.

        Consistent where the transaction is (`Database.read`).
        """
        return SnapshotRows(
            keys=await self.active_keys(whose),
            models=await self.models(whose),
            adapters=await self.routed_adapters(whose),
            attachments=await self.attachments(whose=whose),
            instances=await self.unfinished_instances(whose),
            suspended=await self.suspended_accounts(whose),
            tiers=await self.tiers(whose),
        )

    async def adapters_of(self, accounts: Sequence[str]) -> dict[str, int]:
        """How many adapters each of them has; those without any are left out."""
        owner = adapters.c.account_id
        statement = sa.select(owner, sa.func.count().label("count")).where(owner.in_(accounts))
        rows = (await self._session.run(statement.group_by(owner))).mappings()
        return {row["account_id"]: int(row["count"]) for row in rows}

    async def states(self) -> dict[str, dict[str, int]]:
        """How many instances, attachments and jobs there are in each state."""
        found = {}
        for table in (instances, attachments, jobs):
            statement = sa.select(table.c.state, sa.func.count().label("count")).group_by(table.c.state)
            rows = (await self._session.run(statement)).mappings()
            found[table.name] = {row["state"]: int(row["count"]) for row in rows}
        return found

    async def tiers(self, whose: Collection[str | None] | None = None) -> dict[str, Tier]:
        """By account; those of tier `shared` are left out."""
        among = sa.true() if whose is None else accounts.c.id.in_([id for id in whose if id is not None])
        statement = sa.select(accounts.c.id, accounts.c.tier).where(
            accounts.c.tier != "shared", accounts.c.deleted_at.is_(None), among
        )
        return {row["id"]: row["tier"] for row in (await self._session.run(statement)).mappings()}

    async def suspended_accounts(self, whose: Collection[str | None] | None = None) -> frozenset[str]:
        among = sa.true() if whose is None else accounts.c.id.in_([id for id in whose if id is not None])
        statement = sa.select(accounts.c.id).where(accounts.c.suspended_at.is_not(None), among)
        return frozenset((await self._session.run(statement)).scalars())

    async def _caller(self, which: sa.ColumnElement[bool]) -> Caller | None:
        known = accounts.c.id == api_keys.c.account_id
        maker = members.c.id == api_keys.c.created_by
        statement = (
            sa.select(api_keys, accounts.c.suspended_at, members.c.role)
            .join(accounts, known)
            .join(members, maker, isouter=True)
            .where(which)
        )
        row = (await self._session.run(statement)).mappings().first()
        if row is None:
            return None
        key = ApiKey(**{name: row[name] for name in ApiKey.__struct_fields__})
        return Caller(key, row["suspended_at"] is not None, row["role"])

    async def _people(self, which: sa.ColumnElement[bool], limit: int, account: str | None) -> list[Member]:
        statement = sa.select(members).join(accounts, accounts.c.id == members.c.account_id).where(which)
        statement = statement.where(accounts.c.suspended_at.is_(None))
        if account is not None:
            statement = statement.where((accounts.c.id == account) | (accounts.c.name == account))
        return await self._session.all(
            statement.order_by(members.c.created_at, members.c.id).limit(limit), Member
        )

    async def _labels(self, whose: Collection[str | None] | None) -> dict[int, list[str]]:
        columns = (adapter_labels.c.adapter_row_id, adapter_labels.c.label)
        statement = (
            sa.select(*columns)
            .where(_among(adapter_labels, whose))
            .order_by(adapter_labels.c.created_at.desc(), adapter_labels.c.label)
        )
        grouped: dict[int, list[str]] = {}
        for row in (await self._session.run(statement)).mappings():
            grouped.setdefault(row["adapter_row_id"], []).append(row["label"])
        return grouped


_ADAPTER_FIELDS = Adapter.__struct_fields__
_ROLES = ("live", "wanted", "canary")
_BYTES = ("digest", "rank", "size_bytes")


def _among(table: sa.Table, whose: Collection[str | None] | None) -> sa.ColumnElement[bool]:
    if whose is None:
        return sa.true()
    owned = table.c.account_id.in_([id for id in whose if id is not None])
    return owned | table.c.account_id.is_(None) if None in whose else owned


def _routed(row: sa.RowMapping, labels: dict[int, list[str]]) -> RoutedAdapter:
    adapter = Adapter(**{name: row[name] for name in _ADAPTER_FIELDS})
    former = (label for label in labels.get(adapter.row_id, ()) if label != adapter.label)
    return RoutedAdapter(adapter, (adapter.label, *former), *(_bytes(row, role) for role in _ROLES))


def _bytes(row: sa.RowMapping, role: str) -> VersionBytes | None:
    if row[f"{role}_digest"] is None:
        return None
    return VersionBytes(row[f"{role}_version"], *(row[f"{role}_{name}"] for name in _BYTES))
