"""What this gateway knows: the routes it applies now, and how old control's last word is."""

from __future__ import annotations

from collections.abc import Callable

from pillion.core.errors import UnavailableError
from pillion.core.routing import Routes


class Knowledge:
    """One reference, swapped whole, so that every request sees one snapshot and never a part of two.

    `clock` gives seconds since the epoch. Older snapshots than `max_age_s` route nothing: a key revoked since
    must not open doors for ever.
    """

    def __init__(self, clock: Callable[[], float], max_age_s: float) -> None:
        self._clock = clock
        self._max_age_s = max_age_s
        self._routes: Routes | None = None
        self._confirmed_at = 0.0

    @property
    def version(self) -> int:
        """0 before the first snapshot."""
        return 0 if self._routes is None else self._routes.version

    @property
    def epoch(self) -> str:
        """Of whom the snapshot is."""
        return "" if self._routes is None else self._routes.epoch

    @property
    def age(self) -> float:
        """Seconds since control last said that the snapshot is the present one; infinite before the first."""
        return float("inf") if self._routes is None else max(0.0, self._clock() - self._confirmed_at)

    @property
    def confirmed_at(self) -> float:
        """When control last said that the snapshot is the present one."""
        return self._confirmed_at

    def apply(self, routes: Routes, confirmed_at: float) -> None:
        self._routes = routes
        self._confirmed_at = confirmed_at

    def confirm(self, at: float) -> None:
        """Control says that nothing has changed."""
        self._confirmed_at = at

    def newest(self) -> Routes:
        """However old. Raises `ValueError` before the first."""
        if self._routes is None:
            raise ValueError("there is no snapshot yet")
        return self._routes

    def routes(self) -> Routes:
        """Raises `UnavailableError` with `control_unavailable` where there are none or they are too old."""
        if self._routes is None:
            raise UnavailableError(
                "This gateway has not heard from control yet.", code="control_unavailable", retry_after=2.0
            )
        if self.age > self._max_age_s:
            raise UnavailableError(
                "This gateway has not heard from control for too long to go on without it.",
                code="control_unavailable",
                retry_after=10.0,
            )
        return self._routes
