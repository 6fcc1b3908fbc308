"""What has become of one request's tries so far, and whether there may be another (SPEC §5)."""

from __future__ import annotations

from pillion.core.errors import NoRoomError, PillionError, UnavailableError
from pillion.core.routing import Route, adapter_loading
from pillion.gateway.balance import RetryBudget
from pillion.gateway.cold import Asked, Outcome, failed, late

MAX_LOST = 2
# A broken adapter costs a load on so many replicas, one that is evicted again and again so many on one.
MAX_FAILED = 2
MAX_EVICTED = 3


class NotResident(Exception):
    """The engine did nothing: it does not have the adapter now, or has it fenced."""


class Overdrawn(UnavailableError):
    """The request was lost and must not be sent once more."""


class Deadly(Overdrawn):
    """Two replicas were lost while they had it: it may be what kills them."""


class Tries:
    """Of one request. Nothing was done where a connection was refused or the adapter was not resident: any other
    replica may be tried. Where a replica may have begun, one more is, and the budget pays.
    """

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        self._lost = 0
        self._absent: dict[str, str] = {}
        self._evicted: dict[str, int] = {}
        self._full = self._late = False
        self.unloaded = False
        self._broken: list[Asked] = []
        self.excluded: set[str] = set()
        self.avoided: set[str] = set()
        self.reason: str | None = None

    def refused(self, replica: str) -> None:
        self.excluded.add(replica)
        self.reason = "refused"

    def absent(self, replica: str, name: str) -> None:
        """It does not have what is called `name` in engines."""
        self.excluded.add(replica)
        self._absent[replica] = name
        self.reason = "not_resident"

    def evicted(self, replica: str, name: str) -> None:
        """It does not have it any more, and may be asked to load it again."""
        self._evicted[replica] = self._evicted.get(replica, 0) + 1
        self.reason = "not_resident"
        if self._evicted[replica] >= MAX_EVICTED:
            self.absent(replica, name)

    def not_loaded(self, replica: str, asked: Asked) -> None:
        """It was asked to load and did not."""
        self.excluded.add(replica)
        self.reason = "not_loaded"
        self.unloaded = True
        self._late = self._late or asked.outcome is Outcome.LATE
        self._full = self._full or asked.outcome is Outcome.FULL
        if asked.outcome is Outcome.FAILED:
            self._broken.append(asked)

    def enough(self, route: Route) -> PillionError | None:
        """Why no other is to be asked to load it."""
        if self._late:
            return late(route)
        if len(self._broken) >= MAX_FAILED:
            return failed(route, self._broken[-1].error)
        return None

    def ask_for(self, name: str) -> None:
        """This is asked for from now on: who did not have another version may well have this one."""
        for replica in [replica for replica, other in self._absent.items() if other != name]:
            del self._absent[replica]
            self.excluded.discard(replica)

    def lost(self, replica: str, *, reused: bool) -> None:
        """The connection ended before the answer's first byte. Raises `Overdrawn`.

        An idle connection that was closed under us says little of the replica: another try is free of charge, on the
        same one if there is no other. It counts as held all the same, for it may have been the request that killed it.
        """
        self._lost += 1
        self.reason = "lost"
        if self._lost >= MAX_LOST:
            raise Deadly("Two replicas were lost while they had this request. It is not tried again.")
        if reused:
            self.avoided.add(replica)
            return
        self.excluded.add(replica)
        if not self._budget.spend():
            raise Overdrawn("The replica was lost while it had this request. Try again shortly.")

    def leave(self, replica: str) -> bool:
        """Whether it may leave one that has the request and is silent. It counts as held: it may yet have been the cause."""
        if self._lost or not self._budget.spend():
            return False
        self._lost += 1
        self.pass_by(replica)
        return True

    def pass_by(self, replica: str) -> None:
        """It does not say a word, and has nothing of this request."""
        self.excluded.add(replica)
        self.reason = "silent"

    def verdict(self, route: Route) -> PillionError:
        """Why no candidate is left."""
        if self._broken:
            return failed(route, self._broken[-1].error)
        if self._full:
            return NoRoomError(
                f"Every slot that '{route.echo}' could be loaded into is held or in use now. Try again shortly."
            )
        if self._absent and route.adapter is not None:
            return adapter_loading(route.adapter)
        return UnavailableError(
            f"No replica of '{route.echo}' could be reached. Try again shortly.", retry_after=2.0
        )
