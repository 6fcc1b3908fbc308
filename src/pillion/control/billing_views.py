"""What the control API shows of money. Amounts are integers of 1e-6 of the currency, times seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pillion.core.money import Kind, PriceKind


@dataclass(frozen=True)
class WalletView:
    """`free` is what of `available` is neither in gateways' hands (`leased`) nor used and not yet posted (`owed`)."""

    enabled: bool
    available: int
    held: int
    free: int
    leased: int
    owed: int


@dataclass(frozen=True)
class TransactionView:
    """`amount` moved; the account's own balances changed by `available_change` and `held_change`."""

    id: int
    at: float
    kind: Kind
    amount: int
    available_change: int
    held_change: int
    balance_after: int
    held_after: int
    subject: str
    model: str | None = None
    note: str = ""
    object: Literal["transaction"] = "transaction"


@dataclass(frozen=True)
class PriceView:
    """From `effective_at` on: `hourly` for one GPU, or `input` and `output` per 1,000,000 tokens."""

    id: int
    kind: PriceKind
    item: str
    region: str | None
    hourly: int | None
    input: int | None
    output: int | None
    effective_at: float
    source: str
    created_at: float
    object: Literal["price"] = "price"
