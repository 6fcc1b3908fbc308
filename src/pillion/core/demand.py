"""What a resident adapter is worth: how much it was asked for of late, and what it costs to get it back.

The least valuable goes. One that is asked for once is worth less than one that is asked for again and again, however long
ago: so a scan over many cold adapters passes through the place of one. What was in demand once and is no more fades, and
demand is remembered of adapters that went, so that one that comes back need not earn its place anew.
"""

from __future__ import annotations

from heapq import nlargest

# After so many requests per slot a request counts half. Fewer follow changes sooner and tell the warm from the cold worse:
# `make bench-placement` has what comes of it.
HALF_LIFE_PER_SLOT = 24
_HALF_LIVES = 100.0
_FORGET = 0.9


class Demand:
    """Requests per name, each counting half of what it did `half_life` before.

    `at` is any clock that does not go back. Requests seen make a better one than seconds: then a quiet night takes nothing
    from what was in demand, and a busy hour does not make all look the same. At most `kept` names are remembered, those in
    least demand are forgotten.
    """

    def __init__(self, half_life: float, kept: int = 4096) -> None:
        self._half_life, self._kept = half_life, kept
        self._weights: dict[str, float] = {}
        self._since = self._last = 0.0
        self._one = 1.0

    def seen(self, name: str, at: float, count: float = 1.0) -> None:
        self._last = max(at, self._last)
        age = (self._last - self._since) / self._half_life
        if age > _HALF_LIVES:
            self._weigh_anew(age)
            age = 0.0
        self._one = 2.0**age
        self._weights[name] = self._weights.get(name, 0.0) + count * self._one
        if len(self._weights) > self._kept:
            most = nlargest(int(self._kept * _FORGET), self._weights, key=self._weights.__getitem__)
            self._weights = {name: self._weights[name] for name in most}

    def of(self, name: str) -> float:
        """As of the last request seen. Which of two is greater does not change until there is another."""
        return self._weights.get(name, 0.0) / self._one

    def __len__(self) -> int:
        return len(self._weights)

    def _weigh_anew(self, age: float) -> None:
        factor = 2.0**-age
        self._weights = {name: left for name, w in self._weights.items() if (left := w * factor) > 1e-9}
        self._since = self._last


class LoadCosts:
    """How long a load of so many bytes takes here: a line through those that were measured, newer ones counting more.

    Until two of different sizes were measured all cost the same. A line, because one measured load says little of the next:
    the first may have fetched the files, the second waited for another.
    """

    def __init__(self, fade: float = 0.98) -> None:
        self._fade = fade
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def measured(self, size_bytes: int, ms: float) -> None:
        x, fade = size_bytes / 1e6, self._fade
        self._n = self._n * fade + 1
        self._x = self._x * fade + x
        self._y = self._y * fade + ms
        self._xx = self._xx * fade + x * x
        self._xy = self._xy * fade + x * ms

    def ms(self, size_bytes: int) -> float:
        """Never less than a tenth of the mean, never more for less bytes."""
        if not self._n:
            return 1.0
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x * mean_x
        slope = 0.0
        if spread > 1e-9 * max(1.0, mean_x * mean_x):
            slope = max(0.0, (self._xy / self._n - mean_x * mean_y) / spread)
        return max(mean_y + slope * (size_bytes / 1e6 - mean_x), 0.1 * mean_y)


def worth(demand: Demand, costs: LoadCosts, engine_name: str, size_bytes: int) -> float:
    """Milliseconds that requests would wait, were it not resident, by recent demand."""
    return demand.of(engine_name) * costs.ms(size_bytes)
