"""What was used: events exactly once, and their sums by the hour, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Literal

import sqlalchemy as sa

from pillion.core.usage import Used
from pillion.store.rows import UsageEvent, UsageSum
from pillion.store.session import Session, owned
from pillion.store.tables import usage_events, usage_hours, usage_spools

HOUR_S = 3600
IN_ORDER = 4820184  # the number of a lock of the database's, beside that of migrations
Sums = list[UsageSum]
Parts = list[tuple[str, str, bool, UsageSum]]
Group = Literal["model", "adapter", "key", "day", "instance"]
_SUMS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost")
_KEY = (
    "account_id",
    "hour",
    "key_id",
    "base_model",
    "adapter_id",
    "adapter_version",
    "instance_id",
    "outcome",
)


class Intake:
    """For what gateways report. `session` is one that crosses accounts."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def mark(self, spool: str, now: float) -> int:
        """The highest sequence that is in; locked until commit, so that two reports of one spool follow each other."""
        made = self._session.insert(usage_spools).values(spool=spool, mark=0, updated_at=now)
        await self._session.run(made.on_conflict_do_nothing(index_elements=["spool"]))
        statement = sa.select(usage_spools.c.mark).where(usage_spools.c.spool == spool)
        return int(await self._session.value(statement.with_for_update()))

    async def add(
        self, spool: str, used: Sequence[Used], mark: int, now: float, costs: Sequence[int] = ()
    ) -> None:
        """Events that are not in yet, and the mark they bring the spool to. `costs`: of each, in 1e-9 of the currency.

        To be the last that its transaction waits for: events get their ids one report after the other, so that who has
        read some finds all others after them.
        """
        if used:
            statement = self._session.insert(usage_hours)
            more = {name: usage_hours.c[name] + statement.excluded[name] for name in _SUMS}
            again = statement.on_conflict_do_update(index_elements=list(_KEY), set_=more)
            hours = _hours(used, costs)  # in an order that other reports lock them in too
            await self._session.many(again, [hours[key] for key in sorted(hours)])
            if self._session.dialect == "postgresql":  # SQLite has one writer at a time
                await self._session.run(sa.select(sa.func.pg_advisory_xact_lock(IN_ORDER)))
            await self._session.many(sa.insert(usage_events), [_row(spool, u) for u in used])
        moved = sa.update(usage_spools).where(usage_spools.c.spool == spool)
        await self._session.run(moved.values(mark=mark, updated_at=now))


class Usage:
    """The account's own."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def list(
        self,
        account: str,
        *,
        after: int = 0,
        limit: int = 100,
        since: float | None = None,
        until: float | None = None,
        adapter_id: str | None = None,
        key_id: str | None = None,
    ) -> list[UsageEvent]:
        """Oldest first."""
        statement = sa.select(usage_events).where(owned(usage_events, account), usage_events.c.id > after)
        if since is not None:
            statement = statement.where(usage_events.c.at >= since)
        if until is not None:
            statement = statement.where(usage_events.c.at < until)
        for column, value in (("adapter_id", adapter_id), ("key_id", key_id)):
            if value is not None:
                statement = statement.where(usage_events.c[column] == value)
        return await self._session.all(statement.order_by(usage_events.c.id).limit(limit), UsageEvent)

    async def sums(self, account: str, *, since: float, until: float, group: Group | None = None) -> Sums:
        """By the hour: of every hour that begins in [`since`, `until`). Without a group one row, or none."""
        by = _groups()[group] if group else sa.literal("")
        statement = _summed(account, since, until, by.label("group"))
        found = (await self._session.run(statement.group_by(sa.text("1")).order_by(sa.text("1")))).mappings()
        return [_sum(row, str(row["group"])) for row in found]

    async def spent(self, account: str, key: str, since: float) -> int:
        """What a key's requests cost in the hours from `since` on, in 1e-9 of the currency."""
        hours = usage_hours.c
        statement = sa.select(sa.func.coalesce(sa.func.sum(hours.cost), 0)).where(
            owned(usage_hours, account), hours.key_id == key, hours.hour >= int(since // HOUR_S)
        )
        return int(await self._session.value(statement))

    async def breakdown(self, account: str, *, since: float, until: float) -> Parts:
        """In one look: by day, base model, and whether through an adapter; days in their order."""
        by = _groups()
        through = sa.case((usage_hours.c.adapter_id == "", 0), else_=1).label("through")
        statement = _summed(
            account, since, until, by["day"].label("day"), by["model"].label("model"), through
        )
        found = (await self._session.run(statement.group_by(sa.text("1, 2, 3")))).mappings()
        rows = [(str(row["day"]), str(row["model"]), bool(row["through"]), _sum(row, "")) for row in found]
        return sorted(rows, key=lambda row: (int(row[0]), row[1:3]))


_ORDER = ("requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens", "cost")


def _summed(account: str, since: float, until: float, *by: sa.ColumnElement[Any]) -> sa.Select[Any]:
    errors = sa.func.sum(sa.case((usage_hours.c.outcome == "ok", 0), else_=usage_hours.c.requests))
    sums = [sa.func.sum(usage_hours.c[name]).label(name) for name in _SUMS]
    return sa.select(*by, errors.label("errors"), *sums).where(
        owned(usage_hours, account),
        usage_hours.c.hour >= int(since // HOUR_S),
        usage_hours.c.hour < -int(-until // HOUR_S),
    )


def _sum(row: sa.RowMapping, group: str) -> UsageSum:
    return UsageSum(group, *(int(row[name]) for name in _ORDER))


def _groups() -> dict[str, sa.ColumnElement[Any]]:
    hours = usage_hours.c
    return {
        "model": hours.base_model,
        "adapter": hours.adapter_id,
        "key": hours.key_id,
        "instance": sa.cast(hours.instance_id, sa.Text),
        "day": sa.cast(hours.hour // 24, sa.Text),
    }


def _row(spool: str, used: Used) -> dict[str, Any]:
    return {
        "account_id": used.account,
        "spool": spool,
        "seq": used.seq,
        "at": used.at,
        "key_id": used.key,
        "adapter_id": used.adapter,
        "adapter_version": used.version,
        "model": used.model,
        "base_model": used.base,
        "instance_id": used.instance,
        "replica": used.replica,
        "region": used.region,
        "request_id": used.request_id,
        "prompt_tokens": used.prompt_tokens,
        "cached_tokens": used.cached_tokens,
        "completion_tokens": used.completion_tokens,
        "status": used.status,
        "ttft_ms": used.ttft_ms,
        "duration_ms": used.duration_ms,
        "cold": used.cold,
    }


def _hours(used: Sequence[Used], costs: Sequence[int]) -> dict[tuple[Any, ...], dict[str, Any]]:
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one, cost in zip_longest(used, costs, fillvalue=0):
        assert isinstance(one, Used)
        outcome = "ok" if one.status.startswith("2") else "lost" if one.status == "lost" else "error"
        key = (
            one.account,
            int(one.at // HOUR_S),
            one.key,
            one.base,
            one.adapter or "",
            one.version or 0,
            one.instance,
            outcome,
        )
        row = found.setdefault(key, dict(zip(_KEY, key, strict=True)) | dict.fromkeys(_SUMS, 0))
        row["requests"] += 1
        row["prompt_tokens"] += one.prompt_tokens or 0
        row["cached_tokens"] += one.cached_tokens or 0
        row["completion_tokens"] += one.completion_tokens or 0
        row["cost"] += cost
    return found
