"""What an account used: sums over a window, single events, and how much of it went through adapters."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import Literal

from msgspec.structs import astuple

from pillion.control.charges import month_of
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.lookup import page_after
from pillion.control.views import Coverage, Page, UsageEventView, UsageSnapshot, UsageSummary, UsageSumView
from pillion.control.wallets import wallet_view
from pillion.store.rows import UsageSum
from pillion.store.transaction import Tx
from pillion.store.usage import Group

Window = Literal["24h", "7d", "30d", "month"]
DAY_S = 86_400.0
_DAYS = {"24h": 1, "7d": 7, "30d": 30}
CSV_BATCH = 1000


async def summary(control: Control, who: Principal, window: Window, group: Group) -> UsageSummary:
    """Whole hours: the first may begin up to an hour before the window does."""
    until = control.clock()
    since = since_of(window, until)
    async with control.db.read() as tx:
        groups = await tx.usage.sums(who.account, since=since, until=until, group=group)
        names = await _names(tx, who, group)
    return UsageSummary(
        window, group, since, until, _total(groups), [_view(one, group, names) for one in groups]
    )


async def events(
    control: Control,
    who: Principal,
    after: str | None,
    limit: int,
    adapter_id: str | None = None,
    key_id: str | None = None,
) -> Page[UsageEventView]:
    """Oldest first."""
    async with control.db.read() as tx:
        rows = await tx.usage.list(
            who.account, after=page_after(after), limit=limit + 1, adapter_id=adapter_id, key_id=key_id
        )
    more, rows = len(rows) > limit, rows[:limit]
    views = [UsageEventView(**{name: getattr(row, name) for name in _SHOWN}) for row in rows]
    return Page(views, has_more=more, next=str(rows[-1].id) if more else None)


def as_csv(
    control: Control, who: Principal, after: str | None, adapter_id: str | None, key_id: str | None
) -> AsyncIterator[str]:
    """All of them, a batch at a time, with a line of titles."""
    return _batches(control, who, page_after(after), adapter_id, key_id)


async def _batches(
    control: Control, who: Principal, cursor: int, adapter_id: str | None, key_id: str | None
) -> AsyncIterator[str]:
    yield _lines([list(_SHOWN)])
    while True:
        async with control.db.read() as tx:
            rows = await tx.usage.list(
                who.account, after=cursor, limit=CSV_BATCH, adapter_id=adapter_id, key_id=key_id
            )
        if not rows:
            return
        yield _lines([[getattr(row, name) for name in _SHOWN] for row in rows])
        cursor = rows[-1].id


async def snapshot(control: Control, who: Principal) -> UsageSnapshot:
    """The month to date (UTC)."""
    until = control.clock()
    since = since_of("month", until)
    async with control.db.read() as tx:
        parts = await tx.usage.breakdown(who.account, since=since, until=until)
        paid = await tx.ledger.spent(who.account, since=since, until=until)
        by_date = await tx.ledger.spent(who.account, since=since, until=until, by_day=True)
        wallet = await tx.ledger.wallet(who.account)
    total = _total([one for *_, one in parts])
    through = _total([one for _, _, adapter, one in parts if adapter])
    days = _by([(day, one) for day, _, _, one in parts])
    models = sorted(_by([(model, one) for _, model, _, one in parts]), key=lambda one: one.group)
    return UsageSnapshot(
        since=since,
        until=until,
        total=total,
        by_model=[_view(one, "model", {}) for one in models],
        by_day=[_view(one, "day", {}) for one in days],
        adapter_coverage=Coverage(
            requests=_share(through.requests, total.requests),
            tokens=_share(through.total_tokens, total.total_tokens),
        ),
        wallet=wallet_view(control, wallet),
        paid=sum(paid.values()),
        paid_by_model=paid,
        paid_by_day={_date(day): amount for day, amount in sorted(by_date.items())},
    )


def since_of(window: Window, until: float) -> float:
    """When the window begins, in seconds since the epoch; a month at its first midnight, UTC."""
    if window == "month":
        return month_of(until)
    return until - _DAYS[window] * DAY_S


async def _names(tx: Tx, who: Principal, group: Group) -> dict[str, str]:
    if group == "adapter":
        return {adapter.id: adapter.name for adapter in await tx.adapters.list(who.account, limit=1000)}
    if group == "key":
        return {key.id: key.name for key in await tx.keys.list(who.account)}
    return {}


def _view(one: UsageSum, group: Group, names: dict[str, str]) -> UsageSumView:
    label = one.group
    if group == "day":
        label = _date(one.group)
    return UsageSumView(
        group=label,
        name=names.get(one.group),
        requests=one.requests,
        errors=one.errors,
        prompt_tokens=one.prompt_tokens,
        cached_tokens=one.cached_tokens,
        completion_tokens=one.completion_tokens,
        total_tokens=one.prompt_tokens + one.completion_tokens,
        cost=one.cost // 1000,
    )


def _total(groups: list[UsageSum]) -> UsageSumView:
    return _view(_added("", groups), "model", {})


def _by(parts: Iterable[tuple[str, UsageSum]]) -> list[UsageSum]:
    """Added up by the first, in the order in which they come."""
    found: dict[str, list[UsageSum]] = {}
    for group, one in parts:
        found.setdefault(group, []).append(one)
    return [_added(group, sums) for group, sums in found.items()]


def _added(group: str, sums: Iterable[UsageSum]) -> UsageSum:
    columns = zip(*(astuple(one)[1:] for one in sums), strict=True)
    return UsageSum(group, *([sum(column) for column in columns] or [0] * 5))


def _date(day: str) -> str:
    return datetime.fromtimestamp(int(day) * DAY_S, UTC).date().isoformat()


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _lines(rows: list[list[object]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


_SHOWN = tuple(field.name for field in dataclasses.fields(UsageEventView))
