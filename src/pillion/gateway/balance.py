"""Which of the replicas that may answer is asked, and how often a request may move (SPEC §4, §5)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pillion.core.choice import LOOKED_AT, Load, pick
from pillion.core.routing import Candidate, Route

OUT_S = 5.0
MAX_OUT_S = 60.0
RETURN_S = 10.0
RECENT_S = 30.0
# The weight of a request of now grows, instead of the others' shrinking; after so many half-lives all are weighed anew.
_HALF_LIVES = 100.0


@dataclass(slots=True)
class _Health:
    """Failures in a row; until when it is asked last; and from then on it comes back little by little."""

    failures: int
    out_until: float


class Balance:
    """Requests in flight, recent ones and failures per replica, as this gateway saw them.

    A recent request counts half of what it did `RECENT_S` before.

    `clock` gives seconds that only grow, `random` numbers in [0, 1). A replica that failed is asked last for `out_s`, longer
    with every failure in a row, and then gets a share of its part that grows to the whole within `RETURN_S`.
    """

    def __init__(
        self, clock: Callable[[], float], random: Callable[[], float] = lambda: 0.0, out_s: float = OUT_S
    ) -> None:
        self._clock = clock
        self._random = random
        self._out_s = out_s
        self._in_flight: dict[str, int] = {}
        self._recent: dict[str, float] = {}
        self._since, self._one = clock(), 1.0
        self._health: dict[str, _Health] = {}

    def choose(self, route: Route, excluded: Collection[str] = ()) -> Candidate | None:
        """The best candidate that is not excluded: one that did not fail of late, the account's own before a pool's, and
        among those as `core.choice.pick` says.
        """
        left: Sequence[Candidate] = route.candidates
        if excluded:
            left = [candidate for candidate in left if candidate.replica.id not in excluded]
        if len(left) < 2:
            return left[0] if left else None
        share: dict[str, float] = {}
        if self._health:
            left, share = self._healthy(left)
        if left[0].tier != left[-1].tier:
            left = [candidate for candidate in left if candidate.tier == left[0].tier]
        if len(left) > LOOKED_AT:
            left = self._some(left, route)
        replicas = [candidate.replica.id for candidate in left]
        warm = sum(candidate.resident for candidate in left)
        return left[pick(replicas, warm, Load(self._in_flight, self._recent, self._one, share))]

    def begin(self, replica: str) -> None:
        """One more request in flight."""
        self._in_flight[replica] = self._in_flight.get(replica, 0) + 1
        age = (self._clock() - self._since) / RECENT_S
        if age > _HALF_LIVES:
            age = self._weigh_anew(age)
        self._one = 2.0**age
        self._recent[replica] = self._recent.get(replica, 0.0) + self._one

    def end(self, replica: str) -> None:
        """One less."""
        left = self._in_flight[replica] - 1
        if left:
            self._in_flight[replica] = left
        else:
            del self._in_flight[replica]

    @contextmanager
    def holding(self, replica: str) -> Iterator[None]:
        """Counts one request in flight."""
        self.begin(replica)
        try:
            yield
        finally:
            self.end(replica)

    def in_flight(self, replica: str) -> int:
        return self._in_flight.get(replica, 0)

    def failed(self, replica: str) -> None:
        now = self._clock()
        self._health = {r: h for r, h in self._health.items() if now < h.out_until + RETURN_S or r == replica}
        health = self._health.setdefault(replica, _Health(0, 0.0))
        if now >= health.out_until + RETURN_S:
            health.failures = 0
        health.failures += 1
        health.out_until = now + min(self._out_s * 2.0 ** (health.failures - 1), MAX_OUT_S)

    def answered(self, replica: str) -> None:
        """It works: the next failure is the first again."""
        if self._health and (health := self._health.get(replica)) is not None:
            health.failures = 0

    def _weigh_anew(self, age: float) -> float:
        """What fell to nothing is forgotten: its replica may be gone. The age from now on."""
        recent = {replica: weight * 2.0**-age for replica, weight in self._recent.items()}
        self._recent = {replica: weight for replica, weight in recent.items() if weight > 1e-3}
        self._since += age * RECENT_S
        return 0.0

    def _healthy(self, candidates: Sequence[Candidate]) -> tuple[Sequence[Candidate], dict[str, float]]:
        """Those that are not out, or all where all are; and the shares of those that come back."""
        now = self._clock()
        inside, share = [], {}
        for candidate in candidates:
            health = self._health.get(candidate.replica.id)
            if health is None:
                inside.append(candidate)
            elif now >= health.out_until:
                inside.append(candidate)
                share[candidate.replica.id] = min(1.0, 0.1 + (now - health.out_until) / RETURN_S)
        return inside or candidates, share

    def _some(self, candidates: Sequence[Candidate], route: Route) -> Sequence[Candidate]:
        """The first of an adapter's order. A base is warm everywhere: some that lie beside each other, from anywhere."""
        if route.adapter is not None:
            return candidates[:LOOKED_AT]
        first = int(self._random() * len(candidates))
        return [candidates[(first + step) % len(candidates)] for step in range(4)]


class RetryBudget:
    """At most `share` of requests may be sent a second time, with a small reserve for quiet hours."""

    def __init__(self, share: float = 0.1, reserve: float = 10.0) -> None:
        self._share = share
        self._reserve = reserve
        self._tokens = reserve

    def earn(self) -> None:
        """One more request has come."""
        self._tokens = min(self._reserve, self._tokens + self._share)

    def spend(self) -> bool:
        """Whether one may be sent again."""
        # A hair below 1: ten earnings of 0.1 must buy one retry in binary arithmetic too.
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True
