"""What crosses accounts: for controllers, the snapshot and the operator. The only statements that may."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pillion.store.rows import (
    Adapter,
    ApiKey,
    Attachment,
    Event,
    Instance,
    Job,
    LiveVersion,
    RegisteredModel,
    RoutedAdapter,
    SnapshotRows,
)
from pillion.store.session import Session
from pillion.store.tables import (
    adapter_labels,
    adapter_versions,
    adapters,
    api_keys,
    attachments,
    events,
    instances,
    jobs,
    registered_models,
)


class Everyone:
    """`session` is one made for this (`everyone=True`)."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def key_by_lookup(self, lookup: str) -> ApiKey | None:
        """Revoked ones too: look at `revoked_at`."""
        return await self._session.one(sa.select(api_keys).where(api_keys.c.lookup == lookup), ApiKey)

    async def active_keys(self) -> list[ApiKey]:
        return await self._session.all(sa.select(api_keys).where(api_keys.c.revoked_at.is_(None)), ApiKey)

    async def models(self) -> list[RegisteredModel]:
        return await self._session.all(sa.select(registered_models), RegisteredModel)

    async def instance(self, id: int) -> Instance | None:
        return await self._session.one(sa.select(instances).where(instances.c.id == id), Instance)

    async def instances(self, *, after: int = 0, limit: int = 100) -> list[Instance]:
        statement = sa.select(instances).where(instances.c.id > after).order_by(instances.c.id)
        return await self._session.all(statement.limit(limit), Instance)

    async def wanted_instances(self) -> list[Instance]:
        statement = sa.select(instances).where(instances.c.wanted == "running")
        return await self._session.all(statement.order_by(instances.c.id), Instance)

    async def unfinished_instances(self) -> list[Instance]:
        """What a controller has to look at: wanted running, or not yet stopped or failed."""
        ended = instances.c.state.in_(("stopped", "failed"))
        statement = sa.select(instances).where((instances.c.wanted == "running") | ~ended)
        return await self._session.all(statement.order_by(instances.c.id), Instance)

    async def attachments(
        self, *, instance_id: int | None = None, detaching: bool = True
    ) -> list[Attachment]:
        """All, or those on an instance; without those that are detaching if told so."""
        statement = sa.select(attachments).order_by(attachments.c.id)
        if instance_id is not None:
            statement = statement.where(attachments.c.instance_id == instance_id)
        if not detaching:
            statement = statement.where(attachments.c.state != "detaching")
        return await self._session.all(statement, Attachment)

    async def held_slots(self, instance_id: int, now: float, *, but: int = 0) -> int:
        """How many attachments on the instance hold a slot at `now`, the one with id `but` left out."""
        statement = (
            sa.select(sa.func.count())
            .select_from(attachments)
            .where(
                attachments.c.instance_id == instance_id,
                attachments.c.id != but,
                (attachments.c.hold == "attached") | attachments.c.pinned,
                attachments.c.expires_at.is_(None) | (attachments.c.expires_at > now),
            )
        )
        return int(await self._session.value(statement))

    async def routed_adapters(self) -> list[RoutedAdapter]:
        """All adapters by row id, with their labels and live versions."""
        labels = await self._labels()
        live = (adapter_versions.c.adapter_row_id == adapters.c.row_id) & (
            adapter_versions.c.version == adapters.c.live_version
        )
        columns = [
            adapter_versions.c[name].label(f"live_{name}") for name in ("digest", "rank", "size_bytes")
        ]
        statement = sa.select(adapters, *columns).join(adapter_versions, live, isouter=True)
        found = (await self._session.run(statement.order_by(adapters.c.row_id))).mappings()
        return [_routed(row, labels) for row in found]

    async def digest_uses(self, digest: str) -> int:
        """How many versions, of any account, have these bytes."""
        statement = sa.select(sa.func.count()).select_from(adapter_versions)
        return int(await self._session.value(statement.where(adapter_versions.c.digest == digest)))

    async def digests(self) -> set[str]:
        """All that any version has: what the artifact store must keep."""
        return set((await self._session.run(sa.select(adapter_versions.c.digest).distinct())).scalars())

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

    async def events(self, *, after: int = 0, limit: int = 100) -> list[Event]:
        statement = sa.select(events).where(events.c.id > after).order_by(events.c.id)
        return await self._session.all(statement.limit(limit), Event)

    async def snapshot_rows(self) -> SnapshotRows:
        """Consistent where the transaction is (`Database.read`)."""
        return SnapshotRows(
            keys=await self.active_keys(),
            models=await self.models(),
            adapters=await self.routed_adapters(),
            attachments=await self.attachments(),
            instances=await self.unfinished_instances(),
        )

    async def _labels(self) -> dict[int, list[str]]:
        columns = (adapter_labels.c.adapter_row_id, adapter_labels.c.label)
        statement = sa.select(*columns).order_by(adapter_labels.c.created_at.desc(), adapter_labels.c.label)
        grouped: dict[int, list[str]] = {}
        for row in (await self._session.run(statement)).mappings():
            grouped.setdefault(row["adapter_row_id"], []).append(row["label"])
        return grouped


_ADAPTER_FIELDS = Adapter.__struct_fields__


def _routed(row: sa.RowMapping, labels: dict[int, list[str]]) -> RoutedAdapter:
    adapter = Adapter(**{name: row[name] for name in _ADAPTER_FIELDS})
    former = (label for label in labels.get(adapter.row_id, ()) if label != adapter.label)
    live: Any = row["live_digest"] and LiveVersion(
        row["live_version"], row["live_digest"], row["live_rank"], row["live_size_bytes"]
    )
    return RoutedAdapter(adapter, (adapter.label, *former), live)
