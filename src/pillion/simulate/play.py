"""A trace, played over a virtual fleet on a virtual clock."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from heapq import heappop, heappush

from pillion.simulate.costs import EngineCosts
from pillion.simulate.policies import Policy
from pillion.simulate.replica import VirtualReplica
from pillion.simulate.trace import Trace

PARTS = 60


class Clock:
    """Seconds, set by what happens."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Counted:
    """Of the requests from `start` on. `hits` found the adapter resident, `cold` waited for a load, `refused` found no room
    anywhere. `loads` and `evictions` are of the same time. `first_tokens`: milliseconds each. `parts`: hits and requests of
    equal parts of the whole trace.
    """

    start: int
    requests: int = 0
    hits: int = 0
    cold: int = 0
    refused: int = 0
    loads: int = 0
    evictions: int = 0
    first_tokens: array[float] = field(default_factory=lambda: array("d"))
    served: list[int] = field(default_factory=list)
    parts: list[list[int]] = field(default_factory=lambda: [[0, 0] for _ in range(PARTS)])


class Play:
    """One policy's run. Ends when the last request is answered."""

    def __init__(
        self, trace: Trace, policy: Policy, replicas: int, slots: int, costs: EngineCosts, clock: Clock
    ) -> None:
        self._trace, self._policy, self._costs, self._clock = trace, policy, costs, clock
        self._fleet = [VirtualReplica(slots, costs, policy.recency) for _ in range(replicas)]
        self._numbers = {name: number for number, name in enumerate(trace.names)}
        # When, then in the order of their making; which replica; the request that ends, or the adapter that is loaded.
        self._events: list[tuple[float, int, int, int | str]] = []
        self._made = 0
        self._counted = Counted(0)

    def run(self, start: int) -> Counted:
        """Counts from the request `start` on."""
        counted = self._counted = Counted(start)
        before = [0] * len(self._fleet)
        for request, at in enumerate(self._trace.at):
            if request == start:
                before = [replica.served for replica in self._fleet]
            self._until(at)
            self._clock.now = at
            self._ask(request)
        self._until(float("inf"))
        counted.served = [replica.served - n for replica, n in zip(self._fleet, before, strict=True)]
        return counted

    def _until(self, at: float) -> None:
        events = self._events
        while events and events[0][0] <= at:
            now, _, number, what = heappop(events)
            self._clock.now = now
            if isinstance(what, str):
                self._loaded(number, what)
            else:
                self._ended(number, what)

    def _ask(self, request: int) -> None:
        adapter = self._trace.adapter[request]
        name = self._trace.names[adapter]
        counted, measured = self._counted, request >= self._counted.start
        part = counted.parts[request * PARTS // len(self._trace)]
        part[1] += 1
        counted.requests += measured
        number = self._place(adapter, name, measured)
        if number is None:
            counted.refused += measured
            return
        self._policy.begin(number)
        replica = self._fleet[number]
        if replica.arrive(name, request):
            part[0] += 1
            counted.hits += measured
            self._begin(number, request)
        else:
            counted.cold += measured
            self._load_next(number)

    def _place(self, adapter: int, name: str, measured: bool) -> int | None:
        """The replica that has it or has room for it; room is made there."""
        full: set[int] = set()
        while (number := self._policy.choose(adapter, full)) is not None:
            replica = self._fleet[number]
            if replica.has(name):
                return number
            if replica.has_room(name, self._trace.sizes[adapter], self._clock.now):
                for gone in replica.evicted:
                    self._policy.resident(self._numbers[gone], number, False)
                    self._counted.evictions += measured
                replica.evicted.clear()
                self._policy.resident(adapter, number, True)
                self._counted.loads += measured
                return number
            full.add(number)
        return None

    def _load_next(self, number: int) -> None:
        begun = self._fleet[number].next_load(self._clock.now)
        if begun is not None:
            self._at(begun[1], number, begun[0])

    def _loaded(self, number: int, name: str) -> None:
        for request in self._fleet[number].load_done(name, self._clock.now):
            self._begin(number, request)
        self._load_next(number)

    def _begin(self, number: int, request: int) -> None:
        trace, replica, now = self._trace, self._fleet[number], self._clock.now
        if replica.begin(trace.names[trace.adapter[request]], request, now):
            beside = replica.running - 1
            first = now + self._costs.first_token(trace.prompt_tokens[request], beside)
            if request >= self._counted.start:
                self._counted.first_tokens.append(1000 * (first - trace.at[request]))
            self._at(first + self._costs.rest(trace.tokens[request], beside), number, request)

    def _ended(self, number: int, request: int) -> None:
        self._policy.end(number)
        following = self._fleet[number].end(self._trace.names[self._trace.adapter[request]])
        if following is not None:
            self._begin(number, following)

    def _at(self, when: float, number: int, what: int | str) -> None:
        self._made += 1
        heappush(self._events, (when, self._made, number, what))
