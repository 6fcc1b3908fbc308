"""What is worked out once for many requests: where a model may go, and how it is asked for there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil

import msgspec

from pillion.core.errors import UnavailableError
from pillion.core.routing import Candidate, Route, Routes
from pillion.core.snapshot import Adapter
from pillion.gateway import headers, http
from pillion.gateway.answers import Origin
from pillion.gateway.echo import Echo
from pillion.gateway.faults import Scrub
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.outbound import Origin as Address
from pillion.gateway.pool import Pool
from pillion.gateway.tokens import Wanted

MAX_PLANS = 8192
MAX_PATH = 256  # of those kept: engines' paths are short, and a client may make up very many that are not
Ask = tuple[str, str, str | None]  # account, model, adapter header


class Plan:
    """What is the same for every request over one route to one candidate: made once."""

    __slots__ = ("_origins", "address", "candidate", "fields", "name", "prefix", "route", "served_by")

    def __init__(self, route: Route, candidate: Candidate, path: str, address: Address) -> None:
        self.route = route
        self.candidate = candidate
        self.address = address
        upstream = route.upstream_model(candidate)
        self.name = msgspec.Raw(msgspec.json.encode(upstream))
        echo, scrub = Echo(upstream, route.echo), Scrub(upstream, route.echo)
        self._origins = {wanted: Origin(path, echo, scrub, wanted) for wanted in Wanted}
        self.prefix = headers.engine_prefix(path, address, candidate.replica.infer_key)
        self.served_by = headers.served_by(route, candidate)
        self.fields = http.lines(self.served_by)

    def origin(self, wanted: Wanted) -> Origin:
        """Of answers with so much of the usage."""
        return self._origins[wanted]


class Resolved:
    """Routes by what was asked for. `by`: the snapshot that they are of. A newer one changes few of them."""

    def __init__(self) -> None:
        self.by: Routes | None = None
        self.kept: dict[Ask, Route] = {}
        self._about: dict[str, set[Ask]] = {}

    def follow(self, routes: Routes) -> None:
        """Forgets those to which `routes` may answer otherwise."""
        before, self.by, changed = self.by, routes, routes.changed
        follows = before is not None and changed is not None and changed.since == before.version
        if (
            before is None
            or changed is None
            or not follows
            or before.epoch != routes.epoch
            or changed.everything
        ):
            self._forget()
            return
        for what in (*changed.accounts, *changed.bases, *changed.names):
            for ask in self._about.pop(what, ()):
                self.kept.pop(ask, None)

    def keep(self, ask: Ask, route: Route) -> None:
        if len(self.kept) >= MAX_PLANS or len(self._about) >= 4 * MAX_PLANS:
            self._forget()
        self.kept[ask] = route
        for what in _about(route):
            self._about.setdefault(what, set()).add(ask)

    def _forget(self) -> None:
        self.kept, self._about = {}, {}


class Plans:
    """`clock`: seconds since the epoch."""

    def __init__(
        self, knowledge: Knowledge, pool: Pool, clock: Callable[[], float], quarantine_s: float
    ) -> None:
        self._knowledge = knowledge
        self._pool = pool
        self._clock = clock
        self._quarantine_s = quarantine_s
        self._plans: dict[tuple[int, int, str], Plan] = {}
        self._resolved = Resolved()
        self._quarantined: dict[str, float] = {}
        self._suspects: dict[str, tuple[str, str, float]] = {}

    def resolve(self, account: str, model: str, ref: str | None) -> Route:
        """`Routes.resolve` of the newest snapshot: the identical route as long as nothing about it changes."""
        routes, now = self._knowledge.routes(), self._clock()
        if routes is not self._resolved.by:
            self._resolved.follow(routes)
        ask = account, model, ref
        found = self._resolved.kept.get(ask)
        if found is None or _expired(found, now):
            found = routes.resolve(account, model, ref, now)
            self._resolved.keep(ask, found)
        adapter = found.adapter
        if adapter is not None and (self._quarantined or adapter.refused is not None):
            self._check_quarantine(adapter, now)
        return found

    def version(self, route: Route, draw: float) -> Route:
        """`Route.drawn`, but never a version that is quarantined beside one that is not."""
        found = route.drawn(draw)
        if found is route or found.adapter is None:
            return route
        return route if self._left(found.adapter, self._clock()) > 0 else found

    def quarantine(self, adapter: Adapter) -> None:
        """Routes to this version are refused for a while."""
        now = self._clock()
        self._quarantined = {name: until for name, until in self._quarantined.items() if until > now}
        self._quarantined[_bytes_of(adapter)] = now + self._quarantine_s

    def suspect(self, adapter: Adapter, replica: str, request_id: str) -> str | None:
        """This replica died holding that request for it. Which request another did so with of late."""
        name, now = _bytes_of(adapter), self._clock()
        self._suspects = {other: seen for other, seen in self._suspects.items() if seen[2] > now}
        before = self._suspects.get(name)
        if before is not None and before[0] != replica:
            return before[1]
        self._suspects[name] = replica, request_id, now + self._quarantine_s
        return None

    def _check_quarantine(self, adapter: Adapter, now: float) -> None:
        left = self._left(adapter, now)
        if left > 0:
            raise UnavailableError(
                f"The adapter '{adapter.name}' is quarantined for {ceil(left)} s more: two replicas died while they "
                "had a request for it.",
                retry_after=left,
            )

    def _left(self, adapter: Adapter, now: float) -> float:
        """For how many seconds more it is quarantined, here or by another gateway; not at all if not above 0."""
        name, until = _bytes_of(adapter), 0.0
        if adapter.refused is not None and adapter.refused[0] == name:
            until = adapter.refused[1]
        return max(until, self._quarantined.get(name, 0.0)) - now

    def plan(self, route: Route, candidate: Candidate, path: str) -> Plan:
        # A plan holds what it is for, so that as long as it is kept no other object can have these identities.
        key = id(route), id(candidate), path
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            found = Plan(route, candidate, path, self._pool.origin(candidate.replica.url))
            if len(path) <= MAX_PATH:
                self._plans[key] = found
        return found


def _about(route: Route) -> Iterator[str]:
    """What it depends on: account, base, and what may be elsewhere."""
    yield route.account
    yield route.base
    if route.adapter is not None:
        yield route.upstream_name
        if route.adapter.canary is not None:
            yield route.adapter.canary.engine_name


def _bytes_of(adapter: Adapter) -> str:
    """What is quarantined: a new version is another."""
    return adapter.engine_name or adapter.id


def _expired(route: Route, now: float) -> bool:
    adapter = route.adapter
    return adapter is not None and adapter.expires_at is not None and now >= adapter.expires_at
