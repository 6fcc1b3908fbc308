"""How long replicas were ready, put down by the controller. Crosses accounts, as controllers do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from pillion.core.money import Bill, Run
from pillion.store.rows import Instance
from pillion.store.session import Session
from pillion.store.tables import bills, carries, instances, runs, slices

CHUNK = 500


class Runs:
    """`session` is one that crosses accounts."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def open(self) -> list[Run]:
        """Locked, in an order that others lock them in too."""
        statement = sa.select(runs).where(runs.c.open).order_by(runs.c.id).with_for_update()
        return await self._session.all(statement, Run)

    async def reach(self, replicas: Collection[str]) -> dict[str, int]:
        """Until when the runs of these replicas reach."""
        found: dict[str, int] = {}
        for chunk in _chunks(sorted(replicas)):
            statement = sa.select(runs.c.replica, sa.func.max(runs.c.seen_ms).label("seen_ms")).where(
                runs.c.replica.in_(chunk)
            )
            rows = (await self._session.run(statement.group_by(runs.c.replica))).mappings()
            found |= {row["replica"]: int(row["seen_ms"]) for row in rows}
        return found

    async def all_of(self, replicas: Collection[str]) -> list[Run]:
        """In the order in which they were put down."""
        found: list[Run] = []
        for chunk in _chunks(sorted(replicas)):
            found += await self._session.all(sa.select(runs).where(runs.c.replica.in_(chunk)), Run)
        return sorted(found, key=lambda run: run.id)

    async def extend(self, until: Mapping[int, int], *, open: bool) -> None:
        """Sets until when runs were seen; those that are not `open` any more end there."""
        by: dict[int, list[int]] = defaultdict(list)
        for id, seen in until.items():
            by[seen].append(id)
        for seen, ids in by.items():
            for chunk in _chunks(ids):
                statement = sa.update(runs).where(runs.c.id.in_(chunk), runs.c.open)
                await self._session.run(statement.values(seen_ms=seen, open=open))

    async def begin(self, rows: Collection[Mapping[str, Any]]) -> None:
        """Those whose instance is still wanted; that stays so until the transaction ends."""
        if not rows:
            return
        ids = {row["instance_id"] for row in rows}
        statement = sa.select(instances.c.id).where(instances.c.id.in_(ids), instances.c.wanted == "running")
        wanted = set((await self._session.run(statement.with_for_update(read=True))).scalars())
        for row in rows:
            if row["instance_id"] in wanted:
                await self._session.run(sa.insert(runs).values(**row))

    # For those who settle.

    async def bills(self) -> list[tuple[Bill, Instance, list[Run]]]:
        """All open bills, with their instances and runs that are not charged in full."""
        found = await self._session.all(sa.select(bills).where(bills.c.open), Bill)
        if not found:
            return []
        of = sa.select(instances).join(bills, bills.c.instance_id == instances.c.id).where(bills.c.open)
        rows = {row.id: row for row in await self._session.all(of, Instance)}
        left: dict[int, list[Run]] = defaultdict(list)
        uncharged = sa.select(runs).where(runs.c.billed, runs.c.seen_ms > runs.c.charged_ms)
        for run in await self._session.all(uncharged.order_by(runs.c.id), Run):
            left[run.instance_id].append(run)
        return [(bill, rows[bill.instance_id], left[bill.instance_id]) for bill in found]

    async def without_bill(self) -> list[Instance]:
        """Accounts' instances that are wanted running and have no open bill."""
        joined = sa.select(instances).join(
            bills, (bills.c.instance_id == instances.c.id) & bills.c.open, isouter=True
        )
        statement = joined.where(
            bills.c.instance_id.is_(None),
            instances.c.wanted == "running",
            instances.c.account_id.is_not(None),
        )
        return await self._session.all(statement.order_by(instances.c.id), Instance)

    async def lapsed(self, before: float) -> list[str]:
        """Accounts with slices in gateways' hands that ended at or before this instant."""
        statement = sa.select(slices.c.account_id).where(slices.c.until <= before)
        return list((await self._session.run(statement.distinct().order_by(slices.c.account_id))).scalars())

    async def pools(self, ids: Collection[int]) -> set[int]:
        """Those of these instances that are shared pools."""
        statement = sa.select(instances.c.id).where(instances.c.id.in_(ids), instances.c.account_id.is_(None))
        return set((await self._session.run(statement)).scalars())

    async def owing(self, hour: int) -> list[str]:
        """Accounts that owe for tokens since an hour before this one."""
        statement = sa.select(carries.c.account_id).where(carries.c.owed > 0, carries.c.posted_hour < hour)
        found = await self._session.run(statement.distinct().order_by(carries.c.account_id))
        return list(found.scalars())


def _chunks(found: list[Any]) -> list[list[Any]]:
    return [found[start : start + CHUNK] for start in range(0, len(found), CHUNK)]
