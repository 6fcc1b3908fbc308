"""The most that any choice of what to keep could hit."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush


def belady(adapters: Sequence[int], slots: int, start: int = 0) -> int:
    """Hits from the request `start` on, of one pool of `slots` that knows the future and drops what is asked for last.

    L. A. Belady, "A Study of Replacement Algorithms for a Virtual-Storage Computer", 1966.
    """
    never = len(adapters)
    following, last = [never] * never, dict[int, int]()
    for index in range(never - 1, -1, -1):
        following[index] = last.get(adapters[index], never)
        last[adapters[index]] = index
    kept: dict[int, int] = {}
    furthest: list[tuple[int, int]] = []
    hits = 0
    for index, adapter in enumerate(adapters):
        if adapter in kept:
            hits += index >= start
        elif len(kept) >= slots:
            _drop(kept, furthest)
        kept[adapter] = following[index]
        heappush(furthest, (-following[index], adapter))
    return hits


def _drop(kept: dict[int, int], furthest: list[tuple[int, int]]) -> None:
    while True:
        when, adapter = heappop(furthest)
        if kept.get(adapter) == -when:
            del kept[adapter]
            return
