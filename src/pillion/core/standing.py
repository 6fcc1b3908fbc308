"""One owner's instances of one base, and which of their replicas a request may be sent to, in its own order.

Requests choose among thousands of replicas while now this one, now that one loads something else. So what is worked out
is kept for as long as it is true, and nothing that is kept holds what a replica has: that changes all the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from pillion.core.choice import Ranking
from pillion.core.snapshot import Adapter, Instance, Replica

# So many of the replicas that would have to load an adapter are candidates. Where all of so many fail, so will the next.
COLD = 64
# More than so many that all have what is asked for are not put in order: which of them is asked is drawn.
MANY = 64


@dataclass(frozen=True, slots=True)
class Candidate:
    """A ready replica that may answer. `tier` 0 is the account's own, 1 a shared pool: lower ones first.

    Where not `resident`, the adapter has to be loaded on demand before it can be asked. Instance and replica are without
    what they have.
    """

    instance: Instance
    replica: Replica
    tier: int
    resident: bool = True


@dataclass(frozen=True, slots=True)
class _Place:
    """A ready replica: what it has, and the candidates it may be. `told`: as the snapshot has it."""

    told: Replica
    warm: Candidate
    cold: Candidate


class Standing:
    """`instances` in the order of their ids. It never changes: `moved` makes another."""

    __slots__ = ("_bare", "_everyone", "_places", "_ranking", "instances")

    def __init__(self, instances: Sequence[Instance], before: Standing | None = None) -> None:
        self.instances: tuple[Instance, ...] = tuple(instances)
        known: Mapping[str, _Place] = (
            {} if before is None else {place.told.id: place for place in before._places}
        )
        bare: Mapping[int, Instance] = {} if before is None else before._bare
        self._bare: dict[int, Instance] = {instance.id: _bare(instance, bare) for instance in instances}
        self._places: list[_Place] = [
            _place(self._bare[instance.id], replica, known)
            for instance in instances
            if instance.openai_compatible
            for replica in instance.replicas
            if replica.ready
        ]
        self._ranking: Ranking | None = None
        self._everyone: tuple[Candidate, ...] | None = None

    def moved(self, instances: Sequence[Instance], replicas: Mapping[str, Replica]) -> Standing:
        """With these replicas having something else now; all else is as before. `instances` are the same with them."""
        made = Standing((), None)
        made.instances, made._bare = tuple(instances), self._bare
        made._ranking, made._everyone = self._ranking, self._everyone
        made._places = [
            place if (told := replicas.get(place.told.id)) is None else _Place(told, place.warm, place.cold)
            for place in self._places
        ]
        return made

    @property
    def speaking(self) -> tuple[Instance, ...]:
        """Those that are called as OpenAI's API."""
        return tuple(instance for instance in self.instances if instance.openai_compatible)

    def everyone(self, affinity: str, only: int | None) -> tuple[Candidate, ...]:
        """For the base itself: all, or of instance `only`. Few are in the order of this affinity."""
        if self._everyone is None:
            self._everyone = tuple(place.warm for place in self._places)
        found = self._everyone
        if only is not None:
            found = tuple(candidate for candidate in found if candidate.instance.id == only)
        return found if len(found) > MANY else _ranked(affinity, found)

    def able(
        self, affinity: str, adapter: Adapter, hosts: Iterable[Instance], takes: Callable[[Instance], bool]
    ) -> tuple[Candidate, ...]:
        """Of `hosts` those that have the adapter, and then the first of those that `takes` allows to load it."""
        name, region = adapter.engine_name, adapter.region
        allowed = {instance.id: takes(instance) for instance in hosts}
        warm = tuple(
            place.warm
            for place in self._places
            if name in place.told.resident
            and place.warm.instance.id in allowed
            and (region is None or place.told.region == region)
        )

        def loads(place: _Place) -> bool:
            told = place.told
            return (
                told.agent_url is not None
                and allowed.get(place.cold.instance.id, False)
                and name not in told.resident
                and (region is None or told.region == region)
            )

        cold = self._first(affinity, loads, len(warm)) if any(allowed.values()) else []
        return (*_ranked(affinity, warm), *cold)

    def _first(self, affinity: str, able: Callable[[_Place], bool], warm: int) -> list[Candidate]:
        """The first `COLD` that are able."""
        if self._ranking is None:
            self._ranking = Ranking([place.told.id for place in self._places])
        places = self._places
        for count in (COLD + warm, len(places)):
            order = self._ranking.first(affinity, count)
            found = [place.cold for index in order if able(place := places[index])]
            if len(found) >= COLD or count >= len(places):
                break
        return found[:COLD]


def _ranked(affinity: str, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    if len(candidates) < 2:
        return candidates
    order = Ranking([candidate.replica.id for candidate in candidates]).first(affinity, len(candidates))
    return tuple(candidates[index] for index in order)


def _bare(instance: Instance, known: Mapping[int, Instance]) -> Instance:
    made = replace(instance, replicas=())
    return made if (before := known.get(instance.id)) != made or before is None else before


def _place(instance: Instance, replica: Replica, known: Mapping[str, _Place]) -> _Place:
    bare, place = replace(replica, resident=frozenset()), known.get(replica.id)
    if place is not None and place.warm.instance is instance and place.warm.replica == bare:
        return _Place(replica, place.warm, place.cold)
    tier = 0 if instance.account is not None else 1
    return _Place(replica, Candidate(instance, bare, tier), Candidate(instance, bare, tier, resident=False))
