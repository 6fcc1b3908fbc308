"""What control and gateways say to each other of money: prices of tokens, and slices of accounts' balances (SPEC §6).

Amounts are integers of 1e-6 of the currency. Travels as msgpack.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pillion.core.money import MICRO


class TokenPrice(msgspec.Struct, frozen=True):
    """Per 1,000,000 tokens, from `effective_ms` (milliseconds since the epoch) on."""

    effective_ms: int
    input: int
    output: int

    def cost(self, prompt: int, completion: int) -> int:
        """Rounded up: what is set aside for it always suffices."""
        return -(-(self.input * prompt + self.output * completion) // MICRO)


def price_at(prices: Sequence[TokenPrice], now: float) -> TokenPrice | None:
    """`prices` in the order of their instants; None before the first."""
    at = now * 1000
    return next((price for price in reversed(prices) if price.effective_ms <= at), None)


class Ask(msgspec.Struct, frozen=True):
    """A gateway's ask for an account in its life `epoch`: at least `needed`, better `wanted`; `back` returns. `number`
    grows from ask to ask.

    `spool`: the one whose usage events cover what it spends. `key`: for requests of this key alone, which has a limit.
    """

    spool: str
    epoch: str
    account: str
    number: int
    needed: int
    wanted: int
    back: int = 0
    key: str = ""


class Given(msgspec.Struct, frozen=True):
    """What was given, 0 where `needed` is not covered; to be spent before `until`, as all given before.

    `limited`: the balance would cover it, and the key's limit does not.
    """

    number: int
    amount: int
    until: float
    limited: bool = False
