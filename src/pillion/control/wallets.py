"""What an account has and paid, and the operator's credits."""

from __future__ import annotations

from typing import Literal

from pillion.control import lookup
from pillion.control.billing_views import TransactionView, WalletView
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import Page
from pillion.core.errors import ConflictError, InsufficientBalanceError, InvalidRequestError, NotFoundError
from pillion.core.money import MAX_AMOUNT, Kind, Transfer, Wallet, decimal
from pillion.core.names import new_id
from pillion.store.rows import LedgerEntry
from pillion.store.transaction import Tx

CreditKind = Literal["topup", "bonus", "admin_correction"]
_SOURCES = {"topup": "payments", "bonus": "bonuses", "admin_correction": "corrections"}


async def transactions(
    control: Control, account: str, after: str | None, limit: int, kind: Kind | None = None
) -> Page[TransactionView]:
    """Oldest first."""
    async with control.db.read() as tx:
        rows = await tx.ledger.list(account, after=lookup.page_after(after), limit=limit + 1, kind=kind)
    more, rows = len(rows) > limit, rows[:limit]
    return Page([_view(row) for row in rows], more, str(rows[-1].id) if more else None)


async def of_account(
    control: Control, account: str, after: str | None, limit: int, kind: Kind | None
) -> Page[TransactionView]:
    """Another's, for the operator. Raises `NotFoundError`."""
    async with control.db.read() as tx:
        await _known(tx, account)
    return await transactions(control, account, after, limit, kind)


async def credit(
    control: Control,
    who: Principal,
    account: str,
    kind: CreditKind,
    amount: int,
    key: str | None = None,
    note: str = "",
) -> TransactionView:
    """By the operator. The same `key` again gives what it gave before; only a correction may be below zero.

    Raises `InvalidRequestError`, `NotFoundError`, `ConflictError`.
    """
    if amount == 0 or abs(amount) > MAX_AMOUNT or (amount < 0 and kind != "admin_correction"):
        raise InvalidRequestError(
            f"amount is in 1e-6 of the currency, more than 0 and at most {MAX_AMOUNT}; "
            "an admin_correction may also take as much away.",
            param="amount",
        )
    transfer = _transfer(kind, amount, key or new_id("crd", control.choice), who.key, note)
    async with control.db.transaction() as tx:
        await _known(tx, account)
        await tx.ledger.lock(account)
        row = await tx.ledger.by_key(account, transfer.key)
        if row is None:
            row = await _post(control, tx, account, transfer)
    if (row.kind, row.source, row.target, row.amount) != (
        transfer.kind,
        transfer.source,
        transfer.target,
        transfer.amount,
    ):
        raise ConflictError(f"key {key!r} was used for another credit of this account; use a new one.")
    return _view(row)


def wallet_view(control: Control, wallet: Wallet) -> WalletView:
    return WalletView(
        control.settings.billing, wallet.available, wallet.held, wallet.free, wallet.leased, wallet.owed
    )


async def _post(control: Control, tx: Tx, account: str, transfer: Transfer) -> LedgerEntry:
    try:
        (row,) = await tx.ledger.post(account, [transfer], control.clock())
    except InsufficientBalanceError as error:
        wallet = await tx.ledger.wallet(account)
        raise ConflictError(
            f"the account has {decimal(wallet.available)} available; take away at most that."
        ) from error
    await tx.events.append(
        account,
        at=control.clock(),
        kind="credited",
        subject="account",
        detail={"by": transfer.detail["by"], "kind": transfer.kind, "entry": row.id},
    )
    return row


async def _known(tx: Tx, account: str) -> None:
    if await tx.accounts.get(account) is None:
        raise NotFoundError(f"there is no account {account[:80]!r}.")


def _transfer(kind: CreditKind, amount: int, key: str, by: str, note: str) -> Transfer:
    outside = _SOURCES[kind]
    source, target = (outside, "available") if amount > 0 else ("available", outside)
    detail = {"by": by, **({"note": note} if note else {})}
    return Transfer(f"credit:{key}", kind, source, target, abs(amount), "account", detail)  # type: ignore[arg-type]


def _view(row: LedgerEntry) -> TransactionView:
    def change(book: str) -> int:
        return row.amount * ((row.target == book) - (row.source == book))

    return TransactionView(
        id=row.id,
        at=row.at,
        kind=row.kind,
        amount=row.amount,
        available_change=change("available"),
        held_change=change("held"),
        balance_after=row.available_after,
        held_after=row.held_after,
        subject=row.subject,
        model=row.model or None,
        note=str(row.detail.get("note", "")),
    )
