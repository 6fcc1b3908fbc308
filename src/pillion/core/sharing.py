"""Whose adapter goes for another's, where accounts share the slots of an engine (SPEC §6). Pure.

Half of the slots are shared max-min fairly, by the weights of tiers: an account that has more than its part makes room, for
itself and for others; what one within its part has used of late stays, whoever floods. The rest is had by demand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

# Of an even part, what its account keeps whatever others ask for. Were it all, those in demand would have less, whosever
# they are: with five accounts 61.5 % of requests would find their adapter instead of 63.5 %.
KEPT = 0.5
# What was not used for so long is no longer its account's to keep.
RECENT_S = 600.0


@dataclass(frozen=True)
class Claim:
    """An account's on the slots: its part by `weight`, of which it keeps `reserved` in any case."""

    account: str
    weight: int = 1
    reserved: int = 1


@dataclass(frozen=True)
class Place:
    """A slot that is taken. `free`: it may be made free now. `recent`: used within `RECENT_S`."""

    name: str
    claim: Claim
    worth: float
    free: bool
    recent: bool = True


def level(counts: Mapping[Claim, int], slots: int) -> float:
    """Slots per weight that an account has at most beyond what is reserved for it, so that all together have `slots`;
    infinite where all fit.
    """
    kept: set[Claim] = set()
    while True:
        others = {claim: count for claim, count in counts.items() if claim not in kept}
        most = _even(others, slots - sum(min(counts[claim], claim.reserved) for claim in kept))
        more = {c for c, count in others.items() if min(count, c.reserved) > most * c.weight}
        if not more:
            return most if others or not kept else 0.0
        kept |= more


def victim(places: Sequence[Place], claim: Claim, slots: int) -> Place | None:
    """What goes for one more of this account; None where nothing may.

    While it has less than its part: of the others', what is beyond theirs or not recent. Where there is nothing of the kind:
    its own, or, as long as it has less than what is reserved for it, of those who have as much as it would have then. Where
    it has its part: its own, or what is beyond others' parts. Of all that may go the least valuable.
    """
    counts = dict.fromkeys((place.claim.account for place in places), 0)
    for place in places:
        counts[place.claim.account] += place.recent or place.claim.account == claim.account
    mine = counts.get(claim.account, 0)
    counts[claim.account] = mine + 1
    claims = {place.claim.account: place.claim for place in places} | {claim.account: claim}
    most = level({claims[account]: count for account, count in counts.items() if count}, slots)
    exposed = [
        place for place in _beyond(places, most) if place.free and place.claim.account != claim.account
    ]
    if exposed and mine < _part(claim, most):
        return min(exposed, key=_order)
    own = [place for place in places if place.free and place.claim.account == claim.account]
    if mine >= _part(claim, most):
        return min([*own, *exposed], key=_order, default=None)
    richer = [
        place
        for place in places
        if mine < claim.reserved
        and place.free
        and counts[place.claim.account] * claim.weight >= (mine + 1) * place.claim.weight
    ]
    return min({*own, *richer}, key=_order, default=None)


def _even(counts: Mapping[Claim, int], slots: int) -> float:
    left, weight = float(max(0, slots)), float(sum(claim.weight for claim in counts))
    for claim in sorted(counts, key=lambda c: counts[c] / c.weight):
        if counts[claim] * weight > left * claim.weight:
            return left / weight
        left -= counts[claim]
        weight -= claim.weight
    return inf


def _part(claim: Claim, most: float) -> float:
    return max(claim.reserved, most if most == inf else int(KEPT * most * claim.weight))


def _beyond(places: Iterable[Place], most: float) -> list[Place]:
    """What its account need not be left: not recent, or more than its part. What cannot go counts first."""
    by: dict[str, list[Place]] = {}
    found: list[Place] = []
    for place in places:
        (by.setdefault(place.claim.account, []) if place.recent else found).append(place)
    for own in by.values():
        part = _part(own[0].claim, most)
        if part < len(own):
            found += sorted(own, key=lambda p: (p.free, -p.worth, p.name))[int(part) :]
    return found


def _order(place: Place) -> tuple[float, str]:
    return place.worth, place.name
