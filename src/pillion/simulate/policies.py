"""Who is asked and who has to go: as Pillion does it, and as others do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from pillion.core.choice import LOOKED_AT, Ranking
from pillion.core.routing import Candidate, Route
from pillion.core.snapshot import Adapter, Instance, Replica

BASE, ACCOUNT = "base", "acc_simulated"
# Beyond those that a gateway looks at, some to take the places of those that have no room.
RANKED = 2 * LOOKED_AT


class Chooser(Protocol):
    """The gateway's `Balance`."""

    def choose(self, route: Route, excluded: Collection[str] = ()) -> Candidate | None: ...
    def begin(self, replica: str) -> None: ...
    def end(self, replica: str) -> None: ...


class Policy(Protocol):
    """`recency`: whether replicas evict what was used longest ago. Replicas and adapters are their numbers."""

    recency: bool

    def choose(self, adapter: int, excluded: Collection[int]) -> int | None:
        """The replica to ask; None where none is left."""

    def begin(self, replica: int) -> None: ...
    def end(self, replica: int) -> None: ...
    def resident(self, adapter: int, replica: int, there: bool) -> None:
        """It came to be there, or went."""


class Orders:
    """The order of replicas for each adapter, worked out once for all policies."""

    def __init__(self, replicas: int, adapters: Sequence[str]) -> None:
        self.replicas = [f"1-local-{number}" for number in range(replicas)]
        self.adapters = adapters
        self._ranking = Ranking(self.replicas)
        self._known: dict[int, list[int]] = {}

    def of(self, adapter: int, count: int = RANKED) -> list[int]:
        """The first `count` or more."""
        found = self._known.get(adapter)
        if found is None or len(found) < min(count, len(self.replicas)):
            count = RANKED if count <= RANKED else 2 * count
            found = self._ranking.first(f"{ACCOUNT}/{self.adapters[adapter]}", count)
            self._known[adapter] = found
        return found


class Pillion:
    """The gateway's choice over the routes that it would have."""

    recency = False

    def __init__(self, orders: Orders, chooser: Chooser) -> None:
        self._orders, self._chooser = orders, chooser
        replicas = tuple(Replica(id, "local", "", "", True, frozenset()) for id in orders.replicas)
        instance = Instance(1, ACCOUNT, BASE, BASE, True, None, replicas)
        self._warm = [Candidate(instance, replica, 0, True) for replica in replicas]
        self._cold = [Candidate(instance, replica, 0, False) for replica in replicas]
        self._number = {id: number for number, id in enumerate(orders.replicas)}
        self._where: dict[int, set[int]] = {}
        self._routes: dict[int, Route] = {}

    def choose(self, adapter: int, excluded: Collection[int]) -> int | None:
        route = self._routes.get(adapter)
        if route is None:
            route = self._routes[adapter] = self._route(adapter)
        left_out = {self._orders.replicas[number] for number in excluded} if excluded else ()
        chosen = self._chooser.choose(route, left_out)
        return None if chosen is None else self._number[chosen.replica.id]

    def begin(self, replica: int) -> None:
        self._chooser.begin(self._orders.replicas[replica])

    def end(self, replica: int) -> None:
        self._chooser.end(self._orders.replicas[replica])

    def resident(self, adapter: int, replica: int, there: bool) -> None:
        self._routes.pop(adapter, None)
        where = self._where.setdefault(adapter, set())
        (where.add if there else where.discard)(replica)
        if not where:
            del self._where[adapter]

    def _route(self, adapter: int) -> Route:
        where = self._where.get(adapter, set())
        order = self._orders.of(adapter, RANKED + len(where))
        warm = [self._warm[number] for number in order if number in where]
        cold = [self._cold[number] for number in order if number not in where]
        name = self._orders.adapters[adapter]
        known = Adapter(name, adapter, ACCOUNT, name, (), BASE, 1, name, ())
        return Route("adapter", ACCOUNT, name, BASE, known, (*warm, *cold))


class _Blind:
    """Asks without looking at load or residency."""

    recency = True

    def begin(self, replica: int) -> None:
        pass

    def end(self, replica: int) -> None:
        pass

    def resident(self, adapter: int, replica: int, there: bool) -> None:
        pass


class RoundRobin(_Blind):
    """One after the other, as a load balancer that knows nothing of adapters; least recently used goes."""

    def __init__(self, orders: Orders) -> None:
        self._count, self._next = len(orders.replicas), 0

    def choose(self, adapter: int, excluded: Collection[int]) -> int | None:
        for _ in range(self._count):
            self._next = (self._next + 1) % self._count
            if self._next not in excluded:
                return self._next
        return None


class Hashing(_Blind):
    """Always the same replica for an adapter, the next where that has no room; least recently used goes."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def choose(self, adapter: int, excluded: Collection[int]) -> int | None:
        return next((number for number in self._orders.of(adapter) if number not in excluded), None)


def policies(orders: Orders, chooser: Chooser) -> dict[str, Callable[[], Policy]]:
    return {
        "pillion": lambda: Pillion(orders, chooser),
        "round-robin-lru": lambda: RoundRobin(orders),
        "hashing-lru": lambda: Hashing(orders),
    }
