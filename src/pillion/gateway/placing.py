"""Where one request goes: to which replica, after which waits, and to which next."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from pillion.core.errors import PillionError
from pillion.core.routing import Candidate, Route, may_load
from pillion.core.snapshot import Key, Replica
from pillion.gateway.cold import Asked, Outcome, Waiter
from pillion.gateway.fair import Turn
from pillion.gateway.fare import Fare
from pillion.gateway.plans import Plan
from pillion.gateway.question import Question
from pillion.gateway.tally import Counted, Tally
from pillion.gateway.tries import Deadly, Tries

if TYPE_CHECKING:
    from pillion.gateway.exchange import InferenceExchange
    from pillion.gateway.inference import Inference

What = TypeVar("What")


class Placing:
    """Each try sees the newest snapshot. Where one may be sent, `request` is called with a connection; it `fail`s where no
    other is left. From `end` on nothing is called.

    `plan`: of the last try. `ref`: the adapter that a header names.
    """

    __slots__ = (
        "_account",
        "_cold_until",
        "_fare",
        "_has_canary",
        "_held",
        "_in",
        "_key",
        "_question",
        "_ref",
        "_request",
        "_tally",
        "_tries",
        "_turn",
        "_waiting",
        "plan",
    )

    def __init__(
        self,
        inference: Inference,
        request: InferenceExchange,
        key: Key,
        ref: str | None,
        question: Question,
        tally: Tally,
    ) -> None:
        self._in = inference
        # None once it is over: the two hold each other until then, and no longer.
        self._request: InferenceExchange | None = request
        self._key = key
        self._account = key.account
        self._ref = ref
        self._question = question
        self._tally = tally
        self._tries = Tries(inference.budget)
        self.plan: Plan | None = None
        self._has_canary = False
        self._held: str | None = None
        self._fare: Fare | None = None
        self._turn: Turn | None = None
        self._waiting: Waiter | None = None
        self._cold_until = 0.0

    def place(self) -> None:
        """Asks the best replica there is. Raises `PillionError`."""
        shared, tries = self._in, self._tries
        route = shared.cold.route(self._resolved())
        live = route
        if tries.reason is not None:
            tries.ask_for(route.upstream_name)
        elif route.canary is not None:  # what has to move goes to the live version
            route = shared.plans.version(route, shared.random())
        self._has_canary = route is not live
        candidate = self._best(route)
        if candidate.instance.account is None:
            allowed = self._on_pool(route, candidate)
            if allowed is None:
                return
            candidate = allowed
        if tries.reason is not None:
            shared.metrics.retried(tries.reason)
        plan = self.plan = shared.plans.plan(route, candidate, self._question.path)
        self._tally.goes_to(route, candidate)
        self._held = candidate.replica.id
        shared.balance.begin(self._held)
        if candidate.resident:
            self._connect(plan)
        else:
            self._warm_up(plan)

    def again(self) -> None:
        try:
            self.place()
        except PillionError as error:
            self._fail(error)

    def at(self) -> Replica | None:
        """The replica that has the request, or is to have it."""
        return None if self.plan is None or self._held is None else self.plan.candidate.replica

    def salt(self, plan: Plan) -> msgspec.Raw | None:
        """On shared pools. What an account runs alone needs none, and its engine may not know the field."""
        if plan.candidate.instance.account is not None:
            return None
        return self._question.salt(self._in.knowledge.routes().pepper, self._account)

    # What became of a try

    def answered(self) -> None:
        self._in.balance.answered(self._held or "")

    def refused(self) -> None:
        replica = self._let_go()
        self._failed(replica, "refused")
        self._tries.refused(replica)
        self.again()

    def lost(self, *, reused: bool) -> None:
        """Before the answer began. `reused`: the connection, which may have been closed for its age."""
        replica = self._let_go()
        if not reused:
            self._failed(replica, "lost")
            if self._has_canary:
                self._suspect(replica)
        try:
            self._tries.lost(replica, reused=reused)
        except PillionError as error:
            if isinstance(error, Deadly) and self.plan is not None:
                self._in.quarantine(self._key, self.plan.route, self._tally.request_id)
            self._fail(error)
            return
        self.again()

    def broken(self) -> None:
        """After the answer began."""
        self._failed(self._held or "", "broken")

    def missing(self, plan: Plan) -> None:
        """The replica does not have the adapter, or fences it."""
        replica, route = self._let_go(), plan.route
        if route.adapter is not None and may_load(plan.candidate, route.adapter):
            self._in.cold.absent(replica, route)
            self._tries.evicted(replica, route.upstream_name)
        else:
            self._tries.absent(replica, route.upstream_name)
        self.again()

    def leaves(self, *, sent: bool) -> bool:
        """Whether there is another replica that is not out, and the request may go there: it has left this one then, which
        the budget paid where it was `sent`.
        """
        held, shared, tries = self._held, self._in, self._tries
        if held is None or self._request is None:
            return False
        try:
            route = shared.cold.route(self._resolved())
        except PillionError:
            return False
        other = shared.balance.choose(route, tries.excluded | {held})
        if other is None or shared.balance.out(other.replica.id):
            return False
        if self._request in shared.held_up:
            self._stop_waiting(self._request)
            tries.pass_by(held)
        elif not sent or not tries.leave(held):
            return False
        self._let_go()
        return True

    # Ends

    def end(self) -> None:
        """Waits for nothing any more, and holds no replica."""
        request, self._request = self._request, None
        try:
            if request is not None and self._in.held_up:
                self._stop_waiting(request)
        finally:
            if self._held is not None:
                self._let_go()

    def leave_pool(self, counted: Counted) -> None:
        """`counted`: the tokens to be paid."""
        fare, self._fare = self._fare, None
        if fare is not None:
            fare.end(counted[0] or 0, counted[2] or 0)

    # Below

    def _contained(self, then: Callable[[What], None], what: What) -> None:
        """For what the loop calls, to which a failure is nobody's."""
        request = self._request
        if request is None:
            return
        try:
            then(what)
        except Exception:
            request.crashed()

    def _suspect(self, replica: str) -> None:
        """Of a canary: as its request moves to the live version, no two replicas die with one; they do with two."""
        plan, request = self.plan, self._tally.request_id
        if plan is None or plan.route.adapter is None:
            return
        before = self._in.plans.suspect(plan.route.adapter, replica, request)
        if before is not None:
            self._in.quarantine(self._key, plan.route, f"{before} and {request}")

    def _fail(self, error: PillionError) -> None:
        if self._request is not None:
            self._request.fail(error)

    def _failed(self, replica: str, reason: str) -> None:
        self._in.balance.failed(replica)
        self._in.metrics.failed(reason)

    def _resolved(self) -> Route:
        return self._in.plans.resolve(self._account, self._question.model, self._ref)

    def _best(self, route: Route) -> Candidate:
        """Of those that are left. Raises `PillionError`."""
        tries, balance = self._tries, self._in.balance
        if tries.unloaded:
            # Who has it, however busy; and rather than refuse the request, though that one failed of late.
            warm, refusal = self._warm(route), tries.enough(route)
            if warm is not None and (refusal is not None or not balance.out(warm.replica.id)):
                return warm
            if refusal is not None:
                raise refusal
        if tries.excluded or tries.avoided:
            candidate = balance.choose(route, tries.excluded | tries.avoided)
            candidate = candidate or balance.choose(route, tries.excluded)
        else:
            candidate = balance.choose(route)
        if candidate is None:
            raise tries.verdict(route)
        return candidate

    def _on_pool(self, route: Route, candidate: Candidate) -> Candidate | None:
        """The one to ask within what the account may have; None while it waits for money. Raises `PillionError`."""
        if (fare := self._fare) is None:
            fare = self._fare = Fare(self._in, self._key, self._question)
        if (charge := fare.due(route)) is not None:
            fare.pay(charge, functools.partial(self._contained, self._paid))
        if fare.waits:
            return None
        return candidate if candidate.resident else self._loadable(route, candidate)

    def _paid(self, refusal: PillionError | None) -> None:
        if self._fare is not None:
            self._fare.paid(refusal)
        if refusal is None:
            self.again()
        else:
            self._fail(refusal)

    def _loadable(self, route: Route, candidate: Candidate) -> Candidate:
        """It, or where its account may have no more loads now one that has the adapter. Raises `RateLimitError`."""
        if self._in.cold.under_way(route, candidate) or (refusal := self._in.fair.load(self._key)) is None:
            return candidate
        warm = self._warm(route)
        if warm is None:
            raise refusal
        return warm

    def _warm(self, route: Route) -> Candidate | None:
        """The best of those that have the adapter and are left."""
        cold = {other.replica.id for other in route.candidates if not other.resident}
        return self._in.balance.choose(route, self._tries.excluded | cold)

    def _connect(self, plan: Plan) -> None:
        """Now, or where that is a pool's and busy, when it is this account's turn."""
        candidate = plan.candidate
        if candidate.instance.account is None:
            replica, called = candidate.replica, functools.partial(self._contained, self._called)
            self._turn = self._in.fair.turn(replica.id, self._key, called, replica.max_requests)
            if self._turn.waits:
                self._wait()
                return
        self._reach(plan)

    def _called(self, refusal: PillionError | None) -> None:
        """Its turn has come, or will not."""
        plan = self._waited()
        try:
            if refusal is not None:
                raise refusal
            self._go_on(plan, self._reach)
        except PillionError as error:
            self._fail(error)

    def _go_on(self, plan: Plan, then: Callable[[Plan], None]) -> None:
        """If what it waited for is still to be asked: it may have ended, or another version may be live by now."""
        route, name = self._resolved(), plan.route.upstream_name
        if name == route.upstream_name or (route.canary is not None and name == route.canary.upstream_name):
            then(plan)
        else:
            self._let_go()
            self.place()

    def _reach(self, plan: Plan) -> None:
        request = self._request
        assert request is not None
        # Where one that was kept was lost, so may be all: on a new one the replica's own word counts.
        connection = None if self._tries.avoided else self._in.pool.take(plan.address)
        if connection is None:
            self._in.pool.connect(plan.address, request)
        else:
            request.send(connection)

    def _warm_up(self, plan: Plan) -> None:
        """Waits until the adapter is loaded there."""
        now, cold = self._in.clock(), self._in.cold
        self._cold_until = self._cold_until or now + cold.wait_s
        warmed, of = functools.partial(self._contained, self._warmed), self._tally.carried()
        self._waiting = cold.load(plan.route, plan.candidate, self._cold_until - now, warmed, of)
        self._wait()

    def _warmed(self, asked: Asked) -> None:
        self._waiting, plan = None, self._waited()
        try:
            if asked.outcome not in (Outcome.LOADED, Outcome.THERE):
                self._tries.not_loaded(self._let_go(), asked)
                self.place()
                return
            if asked.outcome is Outcome.LOADED:
                self._tally.loaded()
            self._go_on(plan, self._connect)
        except PillionError as error:
            self._fail(error)

    def _wait(self) -> None:
        """For a load or a turn."""
        if self._request is not None:
            self._in.held_up.add(self._request)

    def _waited(self) -> Plan:
        """What for."""
        if self._request is not None:
            self._in.held_up.discard(self._request)
        assert self.plan is not None
        return self.plan

    def _stop_waiting(self, request: InferenceExchange) -> None:
        self._in.held_up.discard(request)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()

    def _let_go(self) -> str:
        """Of the replica that was tried; which it was."""
        held, self._held = self._held or "", None
        if self._turn is not None:
            self._turn.end()
            self._turn = None
        self._in.balance.end(held)
        return held
