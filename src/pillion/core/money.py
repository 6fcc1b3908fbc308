"""Money: integers of 1e-6 of the currency, what they are asked for, and between which books they move (SPEC §6).

Instants are integers of milliseconds since the epoch, so that what is charged is exact.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Literal

import msgspec

from pillion.core.errors import InvalidRequestError

MICRO = 1_000_000
HOUR_MS = 3_600_000
HOLD_HOURS = 24
MAX_HOURLY = 10**12  # a million of the currency for a GPU and an hour: sums of them stay within 64 bits
MAX_PER_MILLION = 10**12
MAX_AMOUNT = 10**15
_DECIMAL = re.compile(r"\d{1,15}(\.\d{1,6}0*)?", re.ASCII)

Kind = Literal["topup", "hold", "settlement", "refund", "usage", "admin_correction", "bonus"]
# An account's own two, and the operator's, from which and to which everything else goes.
Book = Literal["available", "held", "payments", "bonuses", "corrections", "revenue", "loss"]
PriceKind = Literal["gpu_hour", "tokens"]


class Price(msgspec.Struct, frozen=True):
    """What something costs from `effective_ms` on, until another price of the same takes effect.

    `gpu_hour`: `item` is a GPU type, `region` one region or "" for all, `hourly` for one GPU. `tokens`: `item` is a
    base model, `input` and `output` are per 1,000,000 tokens. `source`: `config`, or the key that set it.
    """

    id: int
    kind: PriceKind
    item: str
    region: str
    hourly: int
    input: int
    output: int
    effective_ms: int
    source: str
    created_at: float


class Transfer(msgspec.Struct, frozen=True):
    """`amount` (> 0) moves from one book to another, once for each `key`. `subject`: for what, e.g. `instance:5`."""

    key: str
    kind: Kind
    source: Book
    target: Book
    amount: int
    subject: str
    detail: dict[str, Any] = {}


class Wallet(msgspec.Struct, frozen=True):
    """An account's money. Of `available`, `leased` is in gateways' hands and `owed` is used but not yet posted."""

    account_id: str
    available: int = 0
    held: int = 0
    leased: int = 0
    owed: int = 0

    @property
    def free(self) -> int:
        return max(0, self.available - self.leased - self.owed)


class Bill(msgspec.Struct, frozen=True):
    """What an instance has in hold. `number` counts its settlements: one that was planned on another is void."""

    instance_id: int
    account_id: str
    held: int
    number: int
    open: bool
    opened_at: float


class Run(msgspec.Struct, frozen=True):
    """A replica was ready from `began_ms` to `seen_ms` (so far, where `open`), and is charged up to `charged_ms`.

    `billed`: billing was on.
    """

    id: int
    account_id: str
    instance_id: int
    replica: str
    region: str
    gpu_type: str
    gpu_count: int
    began_ms: int
    seen_ms: int
    charged_ms: int
    open: bool
    billed: bool


def micros(text: str, what: str = "amount") -> int:
    """A decimal of the currency as an integer of its 1e-6. Raises `InvalidRequestError` naming `what`."""
    if not _DECIMAL.fullmatch(text):
        raise InvalidRequestError(
            f"{what} {text[:40]!r} is no amount; give a decimal with at most 6 places, e.g. 2.49.", param=what
        )
    return int(Decimal(text) * MICRO)


def decimal(amount: int) -> str:
    """An integer of 1e-6 as a decimal with at least two places: -2490000 is `-2.49`."""
    whole, part = divmod(abs(amount), MICRO)
    places = f"{part:06}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}{whole}.{places}"


def ms(seconds: float) -> int:
    return round(seconds * 1000)
