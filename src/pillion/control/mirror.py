"""What the database says is wanted, kept here: only accounts whose rows changed are read again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from pillion.store.account_changes import KEPT_S
from pillion.store.database import Database
from pillion.store.rows import SnapshotRows

# From so many on, all of them are read in one go.
MANY = 200

NOTHING = SnapshotRows([], [], [], [], [])
Account = str | None


class Mirror:
    """`timer`: seconds that only grow. `parts` are each account's rows (None: the operator's), `rows` all of them."""

    def __init__(self, db: Database, timer: Callable[[], float]) -> None:
        self._db = db
        self._timer = timer
        self._mark: int | None = None
        self._read_at = 0.0
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
        parts = {} if changed is None else dict(self.parts)
        for account, part in _by_account(fresh, changed or ()).items():
            before = self.parts.get(account)
            parts[account] = before if before == part else part
            if part == NOTHING:
                del parts[account]
        accounts = parts.keys() | self.parts.keys() if changed is None else changed
        differ = any(parts.get(account) is not self.parts.get(account) for account in accounts)
        self.parts = parts
        if differ:
            self.rows = replace(_whole(parts.values()), prices=self.rows.prices)


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


def _whole(parts: Collection[SnapshotRows]) -> SnapshotRows:
    """All rows: attachments and instances by id, the rest account by account."""
    return SnapshotRows(
        keys=[row for part in parts for row in part.keys],
        models=[row for part in parts for row in part.models],
        adapters=[row for part in parts for row in part.adapters],
        attachments=sorted((row for part in parts for row in part.attachments), key=lambda row: row.id),
        instances=sorted((row for part in parts for row in part.instances), key=lambda row: row.id),
        suspended=frozenset(account for part in parts for account in part.suspended),
        tiers={account: tier for part in parts for account, tier in part.tiers.items()},
    )


def _account(row: Any) -> Account:
    account: Account = row.account_id
    return account


_OWNERS: dict[str, Callable[[Any], Account]] = {
    "keys": _account,
    "models": _account,
    "adapters": lambda row: _account(row.adapter),
    "attachments": _account,
    "instances": _account,
}
