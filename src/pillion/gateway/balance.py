"""Which of the replicas that may answer is asked, and how often a request may move (SPEC §4, §5)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pillion.core.choice import LOOKED_AT, Load, pick
from pillion.core.routing import Candidate, Route

OUT_S = 5.0
MAX_OUT_S = 60.0
RETURN_S = 10.0
RECENT_S = 30.0
NEIGHBOURS = 4
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
        left = self._left(route, excluded)
        if len(left) < 2:
            return left[0] if left else None
        replicas = [candidate.replica.id for candidate in left]
        warm = sum(candidate.resident for candidate in left)
        share = self._shares(replicas) if self._health else {}
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
        health.out_until = now + min(self._out_s * 2.0 ** min(health.failures - 1, 30), MAX_OUT_S)

    def silent(self, replica: str) -> None:
        """It is asked last for `out_s` from now on, and no longer however often this is said."""
        health = self._health.setdefault(replica, _Health(0, 0.0))
        health.failures = max(1, health.failures)
        health.out_until = max(health.out_until, self._clock() + self._out_s)

    def out(self, replica: str) -> bool:
        """Whether it is asked last now."""
        health = self._health.get(replica)
        return health is not None and self._clock() < health.out_until

    def answered(self, replica: str) -> None:
        """It works: it comes back from now on, and the next failure is the first again."""
        if self._health and (health := self._health.get(replica)) is not None:
            health.failures = 0
            health.out_until = min(health.out_until, self._clock())

    def _weigh_anew(self, age: float) -> float:
        """What fell to nothing is forgotten: its replica may be gone. The age from now on."""
        recent = {replica: weight * 2.0**-age for replica, weight in self._recent.items()}
        self._recent = {replica: weight for replica, weight in recent.items() if weight > 1e-3}
        self._since += age * RECENT_S
        return 0.0

    def _left(self, route: Route, excluded: Collection[str]) -> Sequence[Candidate]:
        """Of those not excluded a few, of one tier, that are not out; or all where all are out."""
        near: Sequence[Candidate] = route.candidates
        if len(near) > LOOKED_AT:
            near = self._near(near, route.adapter is None)
        if not excluded and not self._health and near[0].tier == near[-1].tier:
            return near
        everyone = route.candidates
        return self._inside(near, excluded) or self._inside(everyone, excluded) or _rest(everyone, excluded)

    def _near(self, candidates: Sequence[Candidate], warm_everywhere: bool) -> Sequence[Candidate]:
        """The first of an adapter's order. Some of those that are warm, beside each other, from anywhere: a base is warm
        everywhere, and where an adapter is in many places, as many where it is not show that those have too much.
        """
        tier, most = candidates[0].tier, NEIGHBOURS if warm_everywhere else LOOKED_AT // 2
        warm = bisect_right(candidates, False, key=lambda other: other.tier != tier or not other.resident)
        if not warm_everywhere and warm <= most:
            return candidates[:LOOKED_AT]
        first = int(self._random() * warm)
        window = [candidates[(first + step) % warm] for step in range(min(warm, most))]
        return window if warm_everywhere else [*window, *candidates[warm : warm + most]]

    def _inside(self, candidates: Iterable[Candidate], excluded: Collection[str]) -> list[Candidate]:
        """The first of them, of one tier, that are neither excluded nor out."""
        now = self._clock()
        inside: list[Candidate] = []
        for candidate in candidates:
            if inside and (candidate.tier != inside[0].tier or len(inside) == LOOKED_AT):
                break
            replica = candidate.replica.id
            health = self._health.get(replica)
            if replica not in excluded and (health is None or now >= health.out_until):
                inside.append(candidate)
        return inside

    def _shares(self, replicas: Iterable[str]) -> dict[str, float]:
        """The parts of those that come back."""
        now = self._clock()
        found = ((replica, self._health.get(replica)) for replica in replicas)
        return {r: min(1.0, 0.1 + max(0.0, now - h.out_until) / RETURN_S) for r, h in found if h is not None}


def _rest(candidates: Iterable[Candidate], excluded: Collection[str]) -> list[Candidate]:
    """All are out: any that is not excluded, the first tier first."""
    left = [candidate for candidate in candidates if candidate.replica.id not in excluded]
    return [candidate for candidate in left if candidate.tier == left[0].tier][:LOOKED_AT]


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
