"""Which replica is asked: rendezvous hashing with bounded loads. Pure; gateways, simulations and tests use the same.

Every replica has a place in the order of each affinity (an account's adapter, or its base), the same for all gateways, and
a replica that comes or goes moves nobody else's. The first that is not loaded beyond `BOUND` times the mean is taken, so
that an adapter stays where its caches are warm and none is overloaded for it. Mirrokni, Thorup and Zadimoghaddam,
"Consistent Hashing with Bounded Loads", 2018; Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996.

Load is two things: requests in flight, which tell of a replica that is slow now, and those of the last half-minute or so,
which tell of one that too much was placed on. A load of an adapter costs time and pushes another out, so it is not done for
the noise of the former: an adapter is loaded elsewhere only where its replicas are over the bound of the latter, or crowded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import ceil, isqrt
from typing import NamedTuple, TypeVar

BOUND = 1.25
# The same of recent requests: a replica that is at its bound stays there, and is over it for a while where demand moves.
PLACED = 1.15
# Beyond so many replicas a request looks at a few: the best of several at random is nearly the best of all.
LOOKED_AT = 16
# So many recent requests beyond its part a replica may have: with little traffic there is nothing to balance.
SLACK = 8
# A replica is crowded, so that adapters are loaded elsewhere for it, at so many requests in flight and twice the mean.
CROWD = 8
# Over its bound, and with so many times as much in flight as another has that is warm too, a replica may not answer at all:
# most recent requests are then the other's, which must not send all that come to the one that hangs.
STUCK = 2


T = TypeVar("T")


def rank(affinity: str, items: Sequence[T], replica: Callable[[T], str]) -> tuple[T, ...]:
    """`items` in the order of this affinity: by what is left of a product, whose upper bits depend on all of both."""
    own = _number(affinity)
    return tuple(sorted(items, key=lambda item: ((own ^ _number(replica(item))) * _ODD) & _MASK))


_ODD, _MASK = 0x9E3779B97F4A7C15, 2**64 - 1


class Ranking:
    """The beginnings of `rank` over the same replicas for many affinities: without ordering all of them each time."""

    def __init__(self, replicas: Sequence[str]) -> None:
        self._numbers = [_number(replica) for replica in replicas]

    def first(self, affinity: str, count: int) -> list[int]:
        """The indices of the first `count` in the order of this affinity, or of all."""
        own, numbers = _number(affinity), self._numbers
        most = _MASK
        if count < len(numbers):
            # Places are spread evenly, so nearly always enough, and few more, lie so far in front.
            most = _MASK * (count + 4 * isqrt(count) + 4) // len(numbers)
        while True:
            found = [
                (place, index)
                for index, number in enumerate(numbers)
                if (place := ((own ^ number) * _ODD) & _MASK) <= most
            ]
            if len(found) >= count or most >= _MASK:
                found.sort()
                return [index for _, index in found[:count]]
            most = _MASK


@lru_cache(2**16)
def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


class Load(NamedTuple):
    """What a gateway knows of its replicas, none where one is absent.

    `in_flight`: requests. `recent`: requests begun, those longer ago counting less, one of now counting `one`.
    `share`: how much of its part a replica gets, in (0, 1], 1 where absent: less for one that has just come back.
    """

    in_flight: Mapping[str, int]
    recent: Mapping[str, float]
    one: float
    share: Mapping[str, float]


def pick(replicas: Sequence[str], warm: int, load: Load) -> int:
    """The index of the replica to ask, of at least one. The first `warm` of them have what is asked for, the others would
    have to load it first; both in rank order.

    The first warm one within its part of the load; or the least busy warm one that is neither overloaded nor crowded, or
    where that one seems stuck the least busy of all warm ones; or the first other whose load is not above the mean, where
    the adapter would be warm next.
    """
    count = len(replicas)
    if count == 1:
        return 0
    shares = [load.share.get(replica, 1.0) for replica in replicas] if load.share else [1.0] * count
    whole = sum(shares)
    busy = [load.in_flight.get(replica, 0) for replica in replicas]
    recent = [load.recent.get(replica, 0.0) for replica in replicas]
    mean_busy, mean_recent = (sum(busy) + 1) / whole, (sum(recent) + load.one) / whole
    most, slack = BOUND * mean_busy, SLACK * load.one
    free = max(PLACED * mean_recent, mean_recent + slack)
    for index in range(warm):
        share = shares[index]
        if busy[index] < ceil(most * share) and recent[index] < free * share:
            return index
    crowd = max(CROWD, 2.0 * mean_busy)
    calm = [index for index in range(count) if busy[index] < crowd * shares[index]]
    near = [index for index in calm if index < warm and recent[index] < free * shares[index]]
    if near:
        best, idle = (min(among, key=busy.__getitem__) for among in (near, range(warm)))
        return idle if busy[best] * shares[idle] >= STUCK * (busy[idle] + 1) else best
    even = mean_recent + slack
    return next(
        (index for index in calm if index >= warm and recent[index] < even * shares[index]),
        min(range(count), key=busy.__getitem__),
    )
