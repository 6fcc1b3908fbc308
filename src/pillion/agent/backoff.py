"""How long to wait before trying again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Doubles from `first_s` to `most_s`, each time between half and all of it. `random` is in [0, 1)."""

    random: Callable[[], float]
    first_s: float = 0.5
    most_s: float = 60.0

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, 1 or more."""
        whole = min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return whole * (0.5 + self.random() / 2)
