"""A virtual replica: the residency that agents keep, and an engine that only takes time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from pillion.core.demand import HALF_LIFE_PER_SLOT, Demand, LoadCosts, worth
from pillion.core.replica import GrantEntry, Residency
from pillion.core.residency import Table, last_touched, unserved, victims
from pillion.simulate.costs import EngineCosts


class VirtualReplica:
    """`recency`: what was used last stays longest, instead of what is worth most. Requests are numbers, adapters names."""

    def __init__(self, slots: int, costs: EngineCosts, recency: bool) -> None:
        self._slots, self._costs = slots, costs
        self._table = Table()
        self._entries: dict[str, GrantEntry] = {}
        self._demand, self._measured = Demand(HALF_LIFE_PER_SLOT * slots), LoadCosts()
        self._value: Callable[[Residency], float] = last_touched if recency else self._worth
        self._seen = 0
        self._held: Counter[str] = Counter()
        self._loads: deque[str] = deque()
        self._loading: dict[str, float] = {}
        self._waiting: dict[str, list[int]] = {}
        self._queue: deque[int] = deque()
        self.running = 0
        self.served = 0
        self.evicted: list[str] = []

    def has(self, name: str) -> bool:
        """Loaded, or about to be."""
        return name in self._entries

    def loaded(self, name: str) -> bool:
        row = self._table.rows.get(name)
        return row is not None and row.state == "loaded"

    def has_room(self, name: str, size_bytes: int, now: float) -> bool:
        """Makes room where there is none, and keeps it for this adapter, whose load is yet to begin."""
        if len(self._entries) >= self._slots:
            found = victims(self._table.rows, self._entries.values(), self._needed(now), self._value)
            if not found:
                return False
            self._evict(found[0], now)
        self._entries[name] = GrantEntry(name, name, "", 0, size_bytes, hold="loaded")
        self._waiting[name] = []
        self._table.register(name, now)
        self._loads.append(name)
        return True

    def next_load(self, now: float) -> tuple[str, float] | None:
        """A load that begins now, and when it will be done."""
        if not self._loads or len(self._loading) >= self._costs.loads:
            return None
        name = self._loads.popleft()
        self._table.begin_load(name, now)
        self._loading[name] = now
        return name, now + self._costs.load(self._entries[name].size_bytes)

    def load_done(self, name: str, now: float) -> list[int]:
        """The requests that waited for it."""
        ms = 1000 * (now - self._loading.pop(name))
        self._table.loaded(name, now, None, ms)
        self._measured.measured(self._entries[name].size_bytes, ms)
        return self._waiting.pop(name)

    def arrive(self, name: str, request: int) -> bool:
        """Takes a request for an adapter that it has; whether it is loaded, else the request waits for it."""
        self._seen += 1
        self.served += 1
        self._demand.seen(name, self._seen)
        self._held[name] += 1
        if name in self._waiting:
            self._waiting[name].append(request)
            return False
        return True

    def begin(self, name: str, request: int, now: float) -> bool:
        """Whether it runs from now on; else it waits for another to end."""
        if self.running >= self._costs.max_num_seqs:
            self._queue.append(request)
            return False
        self.running += 1
        self._table.used(name, now)
        return True

    def end(self, name: str) -> int | None:
        """The request that may begin for the one that ended."""
        self.running -= 1
        self._held[name] -= 1
        if not self._held[name]:
            del self._held[name]
        return self._queue.popleft() if self._queue else None

    def _needed(self, now: float) -> set[str]:
        """In flight, or not yet used for what it was loaded for."""
        rows = self._table.rows
        return {name for name in self._entries if name in self._held or unserved(rows[name], now)}

    def _evict(self, name: str, now: float) -> None:
        del self._entries[name]
        self._table.begin_unload(name, now)
        self._table.unloaded(name, now)
        self._table.forget(name)
        self.evicted.append(name)

    def _worth(self, row: Residency) -> float:
        name = row.engine_name
        return worth(self._demand, self._measured, name, self._entries[name].size_bytes)
