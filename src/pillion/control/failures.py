"""Failed loads: told once, and forgiven when the adapter is asked for again.

An agent keeps a failure until it is told to try again. What a client asks for again is `attaching` in the database while
the agent still reports the failure that was told before: then that failure is forgiven, and the next one is told anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from pillion.core.replica import ReplicaStatus, Residency

Failed = tuple[str, str, float]  # replica, engine name, since


class Failures:
    """Which failures were written down, which of those are to be tried again, and of which agents know it."""

    def __init__(self) -> None:
        self._told: set[Failed] = set()
        self._forgiven: set[Failed] = set()
        self._sent: set[Failed] = set()

    def tell(self, engine_name: str, facts: Iterable[ReplicaStatus]) -> None:
        """This version's failures are written down."""
        self._told |= failed(engine_name, facts)

    def ask_again(self, engine_name: str, facts: Iterable[ReplicaStatus]) -> None:
        """The adapter is wanted anew: forgive what was told."""
        self._forgiven |= self._told & failed(engine_name, facts)

    def retry(self, replica: str) -> tuple[str, ...]:
        """The engine names whose failure the agent of `replica` has yet to be told to forget."""
        return tuple(sorted(name for where, name, _ in self._forgiven - self._sent if where == replica))

    def sent(self, replica: str, names: Collection[str]) -> None:
        """Its agent was told to forget the failures of these."""
        self._sent |= {failure for failure in self._forgiven if failure[0] == replica and failure[1] in names}

    def forget(self, facts: Mapping[str, ReplicaStatus], replicas: Collection[str]) -> None:
        """Drop what is not so any more. A replica that is there and was not heard may still say the same."""
        now = {(s.replica, row.engine_name, row.since) for s in facts.values() for row in s.adapters}
        self._told = {f for f in self._told if f in now or (f[0] in replicas and f[0] not in facts)}
        self._forgiven &= self._told
        self._sent &= self._forgiven

    def forgiven(self, status: ReplicaStatus) -> ReplicaStatus:
        """The facts without what is forgiven."""

        def counts(row: Residency) -> bool:
            return (status.replica, row.engine_name, row.since) not in self._forgiven

        return msgspec.structs.replace(status, adapters=tuple(filter(counts, status.adapters)))


def failed(engine_name: str, facts: Iterable[ReplicaStatus]) -> set[Failed]:
    return {
        (status.replica, row.engine_name, row.since)
        for status in facts
        for row in status.adapters
        if row.state == "failed" and row.engine_name == engine_name
    }
