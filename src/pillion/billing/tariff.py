"""Which price holds when, and what time and tokens cost by it."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

import msgspec

from pillion.core.money import HOLD_HOURS, HOUR_MS, MICRO, Price


class Terms(msgspec.Struct, frozen=True):
    """What an instance was launched with: `placement` maps a region to its number of replicas."""

    gpu_type: str
    gpu_count: int
    placement: Mapping[str, int]


class Part(NamedTuple):
    """A piece of what was used under one price: `numerator` / `denominator` is its cost in 1e-6 of the currency."""

    price: int
    numerator: int
    denominator: int

    @property
    def micros(self) -> int:
        """In whole 1e-6, rounded up."""
        return -(-self.numerator // self.denominator)

    @property
    def nanos(self) -> int:
        """In whole 1e-9 of the currency: to be shown, not to be charged."""
        return self.numerator * 1000 // self.denominator


class Tariff:
    """All prices. What has none is free; `priced` tells whether a model may be charged at all."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._by: dict[tuple[str, str, str], list[Price]] = defaultdict(list)
        for price in sorted(prices, key=lambda p: (p.effective_ms, p.id)):
            self._by[price.kind, price.item, price.region].append(price)

    def gpu(self, gpu_type: str, region: str, at_ms: int) -> Price | None:
        """A price of the region goes before the one of all regions."""
        return self._at("gpu_hour", gpu_type, region, at_ms) or self._at("gpu_hour", gpu_type, "", at_ms)

    def model(self, name: str, at_ms: int) -> Price | None:
        return self._at("tokens", name, "", at_ms)

    def priced(self, model: str, at_ms: int) -> bool:
        return self.model(model, at_ms) is not None

    def time(self, gpu_type: str, gpu_count: int, region: str, began_ms: int, ended_ms: int) -> list[Part]:
        """What a replica's time costs, split where prices change."""
        cuts = sorted(
            {began_ms, ended_ms}
            | {
                price.effective_ms
                for where in {region, ""}
                for price in self._by.get(("gpu_hour", gpu_type, where), ())
                if began_ms < price.effective_ms < ended_ms
            }
        )
        found = []
        for start, end in pairwise(cuts):
            price = self.gpu(gpu_type, region, start)
            if price is not None and end > start:
                found.append(Part(price.id, price.hourly * gpu_count * (end - start), HOUR_MS))
        return found

    def tokens(self, model: str, at_ms: int, prompt: int, completion: int) -> Part | None:
        price = self.model(model, at_ms)
        if price is None:
            return None
        return Part(price.id, price.input * prompt + price.output * completion, MICRO)

    def hourly(self, terms: Terms, at_ms: int) -> int:
        """What an instance costs for an hour in which all its replicas are ready."""
        total = 0
        for region, replicas in terms.placement.items():
            price = self.gpu(terms.gpu_type, region, at_ms)
            total += price.hourly * terms.gpu_count * replicas if price else 0
        return total

    def hold(self, terms: Terms, at_ms: int) -> int:
        return self.hourly(terms, at_ms) * HOLD_HOURS

    def _at(self, kind: str, item: str, region: str, at_ms: int) -> Price | None:
        known = self._by.get((kind, item, region), [])
        index = bisect_right(known, at_ms, key=lambda price: price.effective_ms)
        return known[index - 1] if index else None


def carried(parts: Iterable[Part], remainders: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    """By price: whole units of 1e-6, and the remainder that is carried on (in the price's own fraction)."""
    sums: dict[int, int] = defaultdict(int)
    denominators: dict[int, int] = {}
    for part in parts:
        sums[part.price] += part.numerator
        denominators[part.price] = part.denominator
    return {
        price: divmod(remainders.get(price, 0) + total, denominators[price]) for price, total in sums.items()
    }
