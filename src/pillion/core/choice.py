"""Which replica is asked: rendezvous hashing with bounded loads. Pure; gateways, simulations and tests use the same.

Every replica has a place in the order of each affinity (an account's adapter, or its base), the same for all gateways, and
a replica that comes or goes moves nobody else's. The first that is not loaded beyond `BOUND` times the mean is taken, so
that an adapter stays where its caches are warm and none is overloaded for it. Mirrokni, Thorup and Zadimoghaddam,
"Consistent Hashing with Bounded Loads", 2018; Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from math import ceil
from typing import TypeVar

BOUND = 1.25
# Beyond so many replicas a request looks at a few: the best of several at random is nearly the best of all.
LOOKED_AT = 16


T = TypeVar("T")


def rank(affinity: str, items: Sequence[T], replica: Callable[[T], str]) -> tuple[T, ...]:
    """`items` in the order of this affinity. Worked out once, for it costs a hash of each."""
    key = affinity.encode()

    def place(item: T) -> bytes:
        return blake2b(replica(item).encode(), digest_size=8, key=key[:64]).digest()

    return tuple(sorted(items, key=place))


def pick(
    replicas: Sequence[str], load: Mapping[str, int], share: Mapping[str, float], bound: float = BOUND
) -> int:
    """The index of the replica to ask, of those in rank order, at least one.

    `load`: requests in flight, none where absent. `share`: how much of its part a replica gets, in (0, 1], 1 where absent:
    less for one that has just come back.
    """
    if len(replicas) == 1:
        return 0
    loads = [load.get(replica, 0) for replica in replicas]
    whole = sum(share.get(replica, 1.0) for replica in replicas) if share else len(loads)
    part = bound * (sum(loads) + 1) / whole
    for index, replica in enumerate(replicas):
        if loads[index] < ceil(part * share.get(replica, 1.0)):
            return index
    return min(range(len(loads)), key=loads.__getitem__)
