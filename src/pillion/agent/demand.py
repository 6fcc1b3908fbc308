"""How much each adapter is asked for here, by what the gate in front of the engine counted, and what it is worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pillion.core.demand import HALF_LIFE_PER_SLOT, Demand, LoadCosts, worth
from pillion.engines.client import Requests


class Interest:
    """Of one replica with so many slots. It is remembered of adapters that went. Time is counted in requests seen."""

    def __init__(self, slots: int) -> None:
        self._demand = Demand(HALF_LIFE_PER_SLOT * max(1, slots))
        self._costs = LoadCosts()
        self._counted: dict[str, int] = {}
        self._seen = 0
        self.busy: frozenset[str] = frozenset()

    def counted(self, requests: Mapping[str, Requests]) -> list[str]:
        """What the gate says now; the adapters that were used since it was last asked."""
        used = []
        for name, now in requests.items():
            before = self._counted.get(name, 0)
            new = now.requests - before if now.requests >= before else now.requests
            if new:
                self._seen += new
                self._demand.seen(name, self._seen, new)
            if new or now.inflight:
                used.append(name)
        self._counted = {name: now.requests for name, now in requests.items()}
        self.busy = frozenset(name for name, now in requests.items() if now.inflight)
        return used

    def forget(self, names: Iterable[str]) -> None:
        """They were unloaded: the gate will count from zero."""
        for name in names:
            self._counted.pop(name, None)

    def loaded(self, size_bytes: int, ms: float) -> None:
        """A load of so many bytes took so long."""
        self._costs.measured(size_bytes, ms)

    def worth(self, name: str, size_bytes: int) -> float:
        return worth(self._demand, self._costs, name, size_bytes)
