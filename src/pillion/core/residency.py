"""Which versions are in one engine's memory: the states, their transitions, and the plan from a grant.

    registered → loading → loaded → evicting → registered        loading → failed → loading (only when asked)
                              ↑__________|   a request came first: it stays

Pure: the agent applies what `plan` says, moves the `Table` as the engine confirms, and plans again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from pillion.core.replica import Failure, GrantEntry, Proof, Residency, ResidencyState
from pillion.core.sharing import RECENT_S, Claim, Place, victim

OCCUPYING: frozenset[ResidencyState] = frozenset({"loading", "loaded", "evicting"})
_LEGAL: dict[ResidencyState, frozenset[ResidencyState]] = {
    "registered": frozenset({"loading"}),
    "loading": frozenset({"loaded", "failed"}),
    "loaded": frozenset({"evicting"}),
    "evicting": frozenset({"registered", "loaded"}),
    "failed": frozenset({"loading", "registered"}),
}

# So long a load waits for the requests that it was made for: their clients may have left.
PATIENCE_S = 10.0

Value = Callable[[Residency], float]


@dataclass(frozen=True)
class Load:
    """Load this version now: there is a free slot for it."""

    entry: GrantEntry


@dataclass(frozen=True)
class Unload:
    """Fence this version, drain it, take it out of the engine."""

    engine_name: str


@dataclass(frozen=True)
class Evict:
    """Take this version out unless a request is with it: its slot is for another."""

    engine_name: str


@dataclass(frozen=True)
class Refuse:
    """No room can be made now for this version, which is asked for."""

    engine_name: str


Action = Load | Unload | Evict | Refuse


class IllegalTransitionError(Exception):
    """A state was to follow one it cannot follow: a bug of the caller, never a client's mistake."""


def last_touched(row: Residency) -> float:
    """The value of a resident version by recency: when it was last used, else since when it is there."""
    return row.since if row.last_used is None else row.last_used


def plan(
    residency: Mapping[str, Residency],
    entries: Sequence[GrantEntry],
    slots: int,
    now: float,
    retry: Collection[str] = (),
    *,
    asked: Collection[str] = (),
    in_flight: Collection[str] = (),
    value: Value = last_touched,
) -> list[Action]:
    """What to do now, so that the engine comes to hold `entries`. All may be applied at the same time.

    `slots` is all the engine has (`LoraSpec.slots`: max_adapters + 1). The last one is the surge slot, used
    only by a flip: a version whose adapter has another version in the engine. A load appears only when its
    slot is free already; where there is none, unloads that make room come first, the load in a later plan.

    Attached and pinned entries go before those in `asked`, where accounts with less in the engine come first, and these
    before the others. Both push out unpinned loads, whose as `sharing.victim` says, but none with requests in flight (names
    in `in_flight` have some); what has yet to serve what it was loaded for goes only for the attached and pinned, and last.
    The others push out nothing. What is asked for and gets no room that way is refused. What is expired at `now` or not in
    `entries` any more is unloaded. Versions in `loading` or `evicting` are left alone; `failed` ones are loaded again only
    if in `asked` or `retry`.
    """
    wanted = {entry.engine_name: entry for entry in entries if not expired(entry, now)}
    unloads = [name for name, row in residency.items() if row.state == "loaded" and name not in wanted]
    missing = [
        (_rank(entry, asked), entry)
        for name, entry in wanted.items()
        if _loadable(residency.get(name), name in retry or name in asked)
    ]
    missing = _in_turn(missing, residency, wanted)

    occupied = [name for name, row in residency.items() if row.state in OCCUPYING]
    loads, waiting = _fit(missing, occupied, slots)
    leaving = {*unloads, *(name for name, row in residency.items() if row.state == "evicting")}
    soon = len(leaving.difference(in_flight))
    urgent = [entry for rank, entry in waiting if rank < _OTHER]
    room = _Room(residency, wanted, slots - 1, now, in_flight, value)
    evicted, without = room.make(urgent[soon:])
    refused = [e.engine_name for e in without[len(leaving) - soon :] if e.engine_name in asked]
    return [
        *(Unload(name) for name in unloads),
        *(Evict(name) for name in evicted),
        *(Load(entry) for entry in loads),
        *(Refuse(name) for name in refused),
    ]


def expired(entry: GrantEntry, now: float) -> bool:
    return entry.expires_at is not None and entry.expires_at <= now


def evictable(entry: GrantEntry) -> bool:
    """Whether room may be made at this entry's cost: never for an attached or pinned one."""
    return entry.hold == "loaded" and not entry.pinned


def victims(
    residency: Mapping[str, Residency],
    entries: Iterable[GrantEntry],
    in_flight: Collection[str] = (),
    value: Value = last_touched,
) -> list[str]:
    """The loaded versions that may be evicted now, the least valuable first. Those in `in_flight` may not."""
    rows = (residency.get(entry.engine_name) for entry in entries if evictable(entry))
    loaded = [row for row in rows if row is not None and row.state == "loaded"]
    idle = [row for row in loaded if row.engine_name not in in_flight]
    return [row.engine_name for row in sorted(idle, key=lambda row: (value(row), row.engine_name))]


def unserved(row: Residency, now: float, patience_s: float = PATIENCE_S) -> bool:
    """Whether what it was loaded for is still to come: it goes before that only if nobody comes for `patience_s`."""
    return (
        row.state == "loaded"
        and (row.last_used is None or row.last_used < row.since)
        and now < row.since + patience_s
    )


class _Room:
    """The slots that are taken, and what of them goes for others."""

    def __init__(
        self,
        residency: Mapping[str, Residency],
        wanted: Mapping[str, GrantEntry],
        slots: int,
        now: float,
        in_flight: Collection[str],
        value: Value,
    ) -> None:
        self._slots = slots
        self._fresh = {name for name, row in residency.items() if unserved(row, now)}
        self._places: list[Place] = []
        for name, entry in wanted.items():
            row = residency.get(name)
            if row is None or row.state not in ("loading", "loaded"):
                continue
            free = row.state == "loaded" and evictable(entry) and name not in in_flight
            recent = last_touched(row) + RECENT_S > now
            self._places.append(Place(name, _claim(entry), value(row), free, recent))

    def make(self, urgent: Iterable[GrantEntry]) -> tuple[list[str], list[GrantEntry]]:
        """What goes for them, and those that nothing goes for."""
        gone, without = [], []
        for entry in urgent:
            found = self._one(entry)
            if found is None:
                without.append(entry)
                continue
            gone.append(found.name)
            self._places.remove(found)
            self._places.append(Place(entry.engine_name, _claim(entry), 0.0, free=False))
        return gone, without

    def _one(self, entry: GrantEntry) -> Place | None:
        served = [p if p.name not in self._fresh else replace(p, free=False) for p in self._places]
        found = victim(served, _claim(entry), self._slots)
        if found is not None or evictable(entry):
            return found
        free = [place for place in self._places if place.free]
        return min(free, key=lambda p: (p.name in self._fresh, p.worth, p.name), default=None)


def _claim(entry: GrantEntry) -> Claim:
    return Claim(entry.account, entry.weight, entry.reserved)


def _in_turn(
    missing: Iterable[tuple[int, GrantEntry]],
    residency: Mapping[str, Residency],
    wanted: Mapping[str, GrantEntry],
) -> list[tuple[int, GrantEntry]]:
    """By rank. What is asked for: by how much its account has in the engine or before it in this order."""
    has = Counter(
        wanted[name].account for name, row in residency.items() if row.state in OCCUPYING and name in wanted
    )

    def turn(ranked: tuple[int, GrantEntry]) -> tuple[int, float]:
        rank, entry = ranked
        if rank != _ASKED:
            return rank, 0.0
        has[entry.account] += 1
        return rank, has[entry.account] / entry.weight

    return sorted(missing, key=turn)  # stable: else in the order of the grant


_HELD, _ASKED, _OTHER = 0, 1, 2


def _rank(entry: GrantEntry, asked: Collection[str]) -> int:
    if not evictable(entry):
        return _HELD
    return _ASKED if entry.engine_name in asked else _OTHER


def _loadable(row: Residency | None, asked: bool) -> bool:
    return row is None or row.state == "registered" or (row.state == "failed" and asked)


def _fit(
    missing: Sequence[tuple[int, GrantEntry]], occupied: Sequence[str], slots: int
) -> tuple[list[GrantEntry], list[tuple[int, GrantEntry]]]:
    """Those of `missing` that have a slot now, and those that must wait, by rank.

    While one of a rank before it waits, none is loaded: it would be pushed out for it, again and again.
    """
    loads: list[GrantEntry] = []
    waiting: list[tuple[int, GrantEntry]] = []
    adapters = {name.partition("@")[0] for name in occupied}
    for rank, entry in missing:
        room = slots if entry.adapter_id in adapters else slots - 1
        others_first = bool(waiting) and waiting[0][0] < rank
        if len(occupied) + len(loads) < room and not others_first:
            loads.append(entry)
            adapters.add(entry.adapter_id)
        else:
            waiting.append((rank, entry))
    return loads, waiting


class Table:
    """The residency of every version on one replica. Each method is one transition; an illegal one raises
    `IllegalTransitionError` and changes nothing. `now` is in seconds since the epoch.
    """

    def __init__(self, rows: Iterable[Residency] = ()) -> None:
        self._rows = {row.engine_name: row for row in rows}

    @property
    def rows(self) -> Mapping[str, Residency]:
        return self._rows

    def occupied(self) -> int:
        return sum(row.state in OCCUPYING for row in self._rows.values())

    def register(self, engine_name: str, now: float) -> None:
        """Make a version known. One that is known already is left as it is."""
        self._rows.setdefault(engine_name, Residency(engine_name, "registered", now))

    def begin_load(self, engine_name: str, now: float) -> Residency:
        self.register(engine_name, now)
        return self._move(engine_name, "loading", now, failure=None, proof=None, load_ms=None)

    def loaded(self, engine_name: str, now: float, proof: Proof | None, load_ms: float) -> Residency:
        return self._move(engine_name, "loaded", now, proof=proof, load_ms=load_ms)

    def failed(self, engine_name: str, now: float, failure: Failure) -> Residency:
        """The load came to nothing and the engine does not hold it."""
        return self._move(engine_name, "failed", now, failure=failure)

    def waits(self, engine_name: str, now: float) -> Residency:
        """It failed, is to be tried again, and there is no slot for it."""
        return self._move(engine_name, "registered", now, failure=None)

    def begin_unload(self, engine_name: str, now: float) -> Residency:
        return self._move(engine_name, "evicting", now)

    def kept(self, engine_name: str, now: float) -> Residency:
        """It was to be evicted, and a request came first."""
        return self._move(engine_name, "loaded", now, last_used=now)

    def unloaded(self, engine_name: str, now: float) -> Residency:
        """The engine was asked again and no longer has it."""
        return self._move(engine_name, "registered", now, proof=None, load_ms=None)

    def used(self, engine_name: str, now: float) -> None:
        row = self._rows[engine_name]
        self._rows[engine_name] = msgspec.structs.replace(row, last_used=max(now, row.last_used or now))

    def forget(self, engine_name: str) -> None:
        """Drop a version that takes no slot. One that does must be unloaded first."""
        row = self._rows.get(engine_name)
        if row is not None and row.state in OCCUPYING:
            raise IllegalTransitionError(f"{engine_name} is {row.state} and cannot be forgotten")
        self._rows.pop(engine_name, None)

    def engine_lost(self, now: float) -> None:
        """The engine is gone and all it held with it. Failures are kept: the same bytes would fail again."""
        for name, row in self._rows.items():
            if row.state in OCCUPYING:
                self._rows[name] = Residency(name, "registered", now, last_used=row.last_used)

    def _move(self, engine_name: str, state: ResidencyState, now: float, **facts: object) -> Residency:
        row = self._rows.get(engine_name)
        if row is None or state not in _LEGAL[row.state]:
            known = row.state if row else "unknown"
            raise IllegalTransitionError(f"{engine_name} is {known} and cannot become {state}")
        moved = msgspec.structs.replace(row, state=state, since=now, **facts)
        self._rows[engine_name] = moved
        return moved
