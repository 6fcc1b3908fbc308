"""What the database says is wanted, kept here: only accounts whose rows changed are read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from pillion.store.account_changes import KEPT_S
from pillion.store.database import Database
from pillion.store.rows import RoutedAdapter, SnapshotRows

# From so many on, all of them are read in one go.
MANY = 200

NOTHING = SnapshotRows([], [], [], [], [])
Account = str | None


@dataclass(frozen=True)
class Touched:
    """Accounts whose parts are others than in `before`."""

    before: Mapping[Account, SnapshotRows]
    accounts: frozenset[Account]


@dataclass(frozen=True)
class Adapters:
    """All adapters: by row id, by public id, and by row id those with a version that is to go live or a canary."""

    by_row: dict[int, RoutedAdapter] = field(default_factory=dict)
    by_id: dict[str, RoutedAdapter] = field(default_factory=dict)
    moving: dict[int, RoutedAdapter] = field(default_factory=dict)

    def patched(self, gone: Iterable[RoutedAdapter], come: Iterable[RoutedAdapter]) -> Adapters:
        made = Adapters(dict(self.by_row), dict(self.by_id), dict(self.moving))
        for row in gone:
            del made.by_row[row.adapter.row_id], made.by_id[row.adapter.id]
            made.moving.pop(row.adapter.row_id, None)
        for row in come:
            made.by_row[row.adapter.row_id] = made.by_id[row.adapter.id] = row
            if row.wanted is not None or row.canary is not None:
                made.moving[row.adapter.row_id] = row
        return made


class Mirror:
    """`timer`: seconds that only grow. `parts` are each account's rows (None: the operator's), `rows` all of them.

    `last`: how `parts` came to be. `adapters`: those of `rows`.
    """

    def __init__(self, db: Database, timer: Callable[[], float]) -> None:
        self._db = db
        self._timer = timer
        self._mark: int | None = None
        self._read_at = 0.0
        self._by_id: dict[str, dict[Any, Any]] = {name: {} for name in _IDS}
        self.last: Touched | None = None
        self.adapters = Adapters()
        self.parts: Mapping[Account, SnapshotRows] = {}
        self.rows = NOTHING

    async def read(self) -> SnapshotRows:
        """One consistent state. Accounts that did not change keep the objects they had. Raises UnavailableError."""
        began = self._timer()
        async with self._db.read() as tx:
            mark = await tx.changes.mark()
            changed = await tx.changes.since(self._mark) if self._mark is not None else None
            if changed is not None and (len(changed) > MANY or began > self._read_at + KEPT_S / 2):
                changed = None
            prices = await tx.prices.all()
            fresh = NOTHING if changed == set() else await tx.everyone.snapshot_rows(changed)
        self._take(fresh, changed)
        if self.rows.prices != prices:
            self.rows = replace(self.rows, prices=prices)
        self._mark, self._read_at = mark, began
        return self.rows

    def _take(self, fresh: SnapshotRows, changed: set[Account] | None) -> None:
        """`changed` is None where `fresh` is all there is."""
        found = _by_account(fresh, changed or ())
        if changed is None:
            found |= dict.fromkeys(self.parts.keys() - found.keys(), NOTHING)
        parts, differ, touched = dict(self.parts), [], set()
        for account, part in found.items():
            before = parts.get(account, NOTHING)
            if part == before:
                continue
            differ.append((before, part))
            touched.add(account)
            if part == NOTHING:
                del parts[account]
            else:
                parts[account] = part
        if differ:
            self.last = Touched(self.parts, frozenset(touched))
            self.parts = parts
            self.adapters = self.adapters.patched(
                (row for before, _ in differ for row in before.adapters),
                (row for _, part in differ for row in part.adapters),
            )
            self._whole(differ)

    def _whole(self, differ: Sequence[tuple[SnapshotRows, SnapshotRows]]) -> None:
        """All rows: what changed goes, what it has become comes. Attachments and instances are in the order of ids."""
        for name, id_of in _IDS.items():
            rows = self._by_id[name]
            for before, part in differ:
                for row in getattr(before, name):
                    del rows[id_of(row)]
                rows |= {id_of(row): row for row in getattr(part, name)}
        suspended, tiers = set(self.rows.suspended), dict(self.rows.tiers)
        for before, part in differ:
            suspended -= before.suspended
            suspended |= part.suspended
            for account in before.tiers:
                del tiers[account]
            tiers |= part.tiers
        lists = {name: list(rows.values()) for name, rows in self._by_id.items()}
        lists["adapters"] = list(self.adapters.by_row.values())
        lists["attachments"].sort(key=_id)
        lists["instances"].sort(key=_id)
        self.rows = SnapshotRows(
            **lists, suspended=frozenset(suspended), tiers=tiers, prices=self.rows.prices
        )


def _by_account(rows: SnapshotRows, accounts: Iterable[Account]) -> dict[Account, SnapshotRows]:
    """Those of `accounts` too that have nothing."""
    found: dict[Account, dict[str, list[Any]]] = {}

    def of(account: Account) -> dict[str, list[Any]]:
        return found.setdefault(account, {name: [] for name in _OWNERS})

    for account in accounts:
        of(account)
    for name, owner in _OWNERS.items():
        for row in getattr(rows, name):
            of(owner(row))[name].append(row)
    for account in (*rows.suspended, *rows.tiers):
        of(account)
    return {
        a: SnapshotRows(
            **lists,
            suspended=rows.suspended & {a},
            tiers={a: rows.tiers[a]} if a is not None and a in rows.tiers else {},
        )
        for a, lists in found.items()
    }


def _account(row: Any) -> Account:
    account: Account = row.account_id
    return account


def _id(row: Any) -> Any:
    return row.id


_OWNERS: dict[str, Callable[[Any], Account]] = {
    "keys": _account,
    "models": _account,
    "adapters": lambda row: _account(row.adapter),
    "attachments": _account,
    "instances": _account,
}

_IDS: dict[str, Callable[[Any], Any]] = {
    "keys": _id,
    "models": _id,
    "attachments": _id,
    "instances": _id,
}
