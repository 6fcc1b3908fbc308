"""One inference request: who asks, what for, where it goes, and how its answer comes back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import structlog

from pillion.core.errors import (
    InvalidRequestError,
    PillionError,
    RequestTooLargeError,
)
from pillion.core.routing import Candidate, Route, may_load
from pillion.core.snapshot import Key, Replica
from pillion.core.usage import QUARANTINED
from pillion.gateway import headers
from pillion.gateway.accounting import Meter, RateLimits, Ticket
from pillion.gateway.answers import CutShortError, KeyRefusedError, Reply, broken, read_reply
from pillion.gateway.auth import Doorkeeper
from pillion.gateway.balance import Balance, RetryBudget
from pillion.gateway.body import (
    BodyPolicy,
    Document,
    ask_for_usage,
    cache_salt,
    encode,
    may_hold_urls,
    read_document,
)
from pillion.gateway.budgets import Budgets, Payer
from pillion.gateway.charges import Charge, check_answers, most
from pillion.gateway.cold import Asked, Cold, Outcome, Waiter
from pillion.gateway.config import Limits
from pillion.gateway.fair import Fair, Turn
from pillion.gateway.form import Form, boundary_of, usage_asked
from pillion.gateway.http import Head
from pillion.gateway.inbound import CLIENT_LEFT, Exchange, Inbound
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.metrics import Metrics
from pillion.gateway.outbound import Asker, Outbound, Pool
from pillion.gateway.plans import Plan, Plans
from pillion.gateway.replies import ReplyHead
from pillion.gateway.tokens import Wanted
from pillion.gateway.tracing import Tracing
from pillion.gateway.tries import Deadly, NotResident, Tries

log = structlog.get_logger(__name__)

What = TypeVar("What")

# How often a stream's tokens are told to its ticket while it runs.
TELL_S = 1.0


@dataclass
class Inference:
    """What all requests share. `clock`: seconds since the epoch. `random`: from [0, 1)."""

    knowledge: Knowledge
    pool: Pool
    plans: Plans
    cold: Cold
    door: Doorkeeper
    balance: Balance
    budget: RetryBudget
    policy: BodyPolicy
    limits: Limits
    metrics: Metrics
    meter: Meter
    rates: RateLimits
    budgets: Budgets
    fair: Fair
    clock: Callable[[], float]
    new_id: Callable[[], str]
    tracing: Tracing | None
    random: Callable[[], float]
    held_up: set[InferenceExchange] = field(default_factory=set)  # by a load, or for their turn

    def receive(self, head: Head, connection: Inbound) -> InferenceExchange:
        """Raises `PillionError` for what need not be read to be refused."""
        key = self.door.authorize(self.knowledge.routes(), head, "inference", connection.peer)
        ref = headers.checked_adapter_ref(head)
        length, limit = connection.length, self.limits.max_body
        if length is not None and length > limit:
            raise too_large(limit)
        if (refusal := self.rates.check(key, self.clock())) is not None:
            raise refusal
        boundary = boundary_of(head)
        connection.proceed()
        return InferenceExchange(
            self, head, connection, key, ref, None if boundary is None else Form(boundary)
        )

    def waiting(self) -> Iterator[InferenceExchange]:
        """Those that a replica has or is to have."""
        yield from list(self.held_up)
        for asker in self.pool.asking():
            if isinstance(asker, InferenceExchange):
                yield asker

    def quarantine(self, key: Key, route: Route, request_id: str) -> None:
        """Two replicas died holding a request for this adapter."""
        if route.adapter is None:
            return
        self.plans.quarantine(route.adapter)
        self.metrics.quarantined()
        self.meter.incident(QUARANTINED, key, route, f"Two replicas died holding {request_id}.")
        log.warning("adapter quarantined", adapter=route.adapter.id, request_id=request_id)


class InferenceExchange(Exchange, Asker):
    """Tries replicas until one answers; each try sees the newest snapshot. It is called by client and upstream."""

    __slots__ = (
        "_account",
        "_admitted",
        "_begun",
        "_charge",
        "_choked",
        "_client",
        "_cold",
        "_cold_until",
        "_document",
        "_engine_id",
        "_extra",
        "_form",
        "_head",
        "_held",
        "_in",
        "_key",
        "_model",
        "_over",
        "_parts",
        "_paying",
        "_plan",
        "_ref",
        "_reply",
        "_size",
        "_ticket",
        "_told_at",
        "_trace",
        "_tries",
        "_turn",
        "_upstream",
        "_waiting",
        "_wanted",
    )
    kind = "inference"
    patient = False

    def __init__(
        self, inference: Inference, head: Head, client: Inbound, key: Key, ref: str | None, form: Form | None
    ) -> None:
        self._in = inference
        self._form = form
        self._extra: dict[str, str] = {}
        self._head = head
        self._client = client
        self._key = key
        self._account = key.account
        self._ref = ref
        self._parts: list[bytes] = []
        self._size = 0
        self._tries = Tries(inference.budget)
        self._document: Document = {}
        self._model = ""
        self._wanted = Wanted.AS_IT_IS
        # The engine gets a request id of ours: two clients may choose the same.
        own = head.first("x-request-id") is None
        self._engine_id = client.request_id if own else inference.new_id()
        tracing = inference.tracing
        self._trace = None if tracing is None else tracing.begin(head, key, client.request_id)
        self._plan: Plan | None = None
        self._held: str | None = None
        self._upstream: Outbound | None = None
        self._reply: Reply | None = None
        self._ticket: Ticket | None = None
        self._told_at = 0.0
        self._waiting: Waiter | None = None
        self._charge: Charge | None = None
        self._paying: Payer | None = None
        self._cold, self._cold_until = False, 0.0
        self._turn: Turn | None = None
        self._admitted = self._begun = self._choked = self._over = False

    # What the client's connection calls

    def body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._in.limits.max_body:
            self._fail(too_large(self._in.limits.max_body))
        elif self._form is None:
            self._parts.append(data)
        elif not self._over:
            try:
                self._form.feed(data)
            except PillionError as error:
                self._fail(error)

    def body_end(self) -> None:
        if self._over:
            return
        try:
            if self._form is not None:
                self._read_form(self._form)
            else:
                raw = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts = []
                document, self._model = read_document(raw)
                urls = may_hold_urls(raw)
                self._document = self._in.policy.apply(self._head.path, document, may_hold_urls=urls)
                self._wanted = ask_for_usage(self._head.path, self._document)
            self._in.budget.earn()
            self._place()
        except PillionError as error:
            self._fail(error)

    def left(self) -> None:
        self._close(CLIENT_LEFT)

    def client_full(self, full: bool) -> None:
        self._choked = full
        if self._upstream is not None:
            if full:
                self._upstream.pause()
            else:
                self._upstream.resume()

    # What upstream calls

    def connected(self, connection: Outbound) -> None:
        if self._over:
            self._in.pool.give(connection)
            return
        self._send(connection)

    def refused(self, why: str) -> None:
        if self._over:
            return
        replica = self._let_go()
        self._failed(replica, "refused")
        self._tries.refused(replica)
        self._again()

    def lost(self, why: str) -> None:
        if self._over:
            return
        reused = self._upstream is not None and self._upstream.reused
        self._upstream = None
        self._lost(reused=reused)

    def proceed(self) -> None:
        """Nothing waits for it."""

    def began(self, head: ReplyHead, length: int | None) -> None:
        plan = self._plan
        assert plan is not None
        try:
            self._reply = read_reply(head, length, plan.origin(self._wanted), self._in.limits.max_answer)
            self._in.balance.answered(self._held or "")
        except NotResident:
            self._part()
            self._missing(plan)
        except KeyRefusedError:
            self._part()
            self.refused("the engine does not take the gateway's key")
        except PillionError as error:
            self._fail(error)

    def came(self, data: bytes) -> None:
        reply = self._reply
        if reply is None:
            return
        try:
            out = reply.feed(data)
        except PillionError as error:
            self._break(error)
            return
        if not out:
            return
        if self._begun:
            if (now := self._in.clock()) >= self._told_at + TELL_S and self._ticket is not None:
                self._told_at = now
                self._ticket.keep(*reply.tokens.counted)
            self._client.write(out)
        else:
            self._begin(reply, out)

    def answered(self) -> None:
        self._upstream = None
        reply = self._reply
        if self._over or reply is None:
            return
        try:
            rest = reply.end()
        except CutShortError:
            self._lost(reused=False)
            return
        except PillionError as error:
            self._fail(error)
            return
        plan = self._plan
        assert plan is not None
        fields = b"" if self._begun else self._fields(reply, plan)
        self._settle(reply.status)
        if self._begun:
            self._client.end(rest)
        else:
            self._client.answer(reply.status, fields, rest)

    def upstream_full(self, full: bool) -> None:
        """The whole request is in its buffer anyway."""

    def crashed(self) -> None:
        """Lets go of all that it has, one after the other whatever else fails, and tells the client."""
        self._over = True
        for let_go in (self._part, self._stop_waiting, self._free, self._leave_pool, self._write_off):
            try:
                let_go()
            except Exception as error:
                log.error("request not cleaned up", request_id=self._client.request_id, error=repr(error))
        self._client.crash(None if self._reply is None else self._reply.failed(_failed()))

    # What a watch asks and says

    def waits_for(self) -> Replica | None:
        plan = self._plan
        if plan is None or self._held is None or self._begun or self._over:
            return None
        return plan.candidate.replica

    def silent(self) -> None:
        """Goes to another replica, if there is one that is not out and it may: once, and paid by the budget."""
        try:
            self._move_on()
        except Exception:
            self.crashed()

    # Below

    def _move_on(self) -> None:
        held, shared, tries = self._held, self._in, self._tries
        if held is None or self._begun or self._over:
            return
        try:
            route = shared.cold.route(shared.plans.resolve(self._account, self._model, self._ref))
        except PillionError:
            return
        other = shared.balance.choose(route, tries.excluded | {held})
        if other is None or shared.balance.out(other.replica.id):
            return
        if self in shared.held_up:
            self._stop_waiting()
            tries.pass_by(held)
        elif self._upstream is not None and tries.leave(held):
            self._part()
            self._reply = None
        else:
            return
        self._let_go()
        self._again()

    def _contained(self, then: Callable[[What], None], what: What) -> None:
        """For what the loop calls, to which a failure is nobody's."""
        try:
            then(what)
        except Exception:
            self.crashed()

    def _read_form(self, form: Form) -> None:
        document, self._model = form.end()
        self._document = self._in.policy.apply(self._head.path, document)
        self._extra, self._wanted = usage_asked(self._head.path, document)

    def _place(self) -> None:
        """Asks the best replica there is. Raises `PillionError`."""
        shared, tries = self._in, self._tries
        route = shared.cold.route(shared.plans.resolve(self._account, self._model, self._ref))
        if tries.reason is not None:
            tries.ask_for(route.upstream_name)
        elif route.canary is not None:  # what has to move goes to the live version
            route = shared.plans.version(route, shared.random())
        if tries.excluded or tries.avoided:
            candidate = shared.balance.choose(route, tries.excluded | tries.avoided)
            candidate = candidate or shared.balance.choose(route, tries.excluded)
        else:
            candidate = shared.balance.choose(route)
        if candidate is None:
            raise tries.verdict(route)
        if candidate.instance.account is None:
            candidate = self._on_pool(route, candidate)
            if candidate is None:
                return
        if tries.reason is not None:
            shared.metrics.retried(tries.reason)
        plan = self._plan = shared.plans.plan(route, candidate, self._head.path)
        if self._ticket is None:
            request_id = self._client.request_id
            self._ticket = shared.meter.admit(self._key, route, candidate, request_id, shared.clock())
        else:
            self._ticket.served_by(route, candidate)
        self._held = candidate.replica.id
        shared.balance.begin(self._held)
        if candidate.resident:
            self._connect(plan)
        else:
            self._warm_up(plan)

    def _on_pool(self, route: Route, candidate: Candidate) -> Candidate | None:
        """The one to ask within what the account may have; None while it waits for money. Raises `PillionError`."""
        if not self._admitted:
            check_answers(self._head.path, self._document)
            self._in.fair.admit(self._key)
            self._admitted = True
        if not self._covered(route):
            return None
        return candidate if candidate.resident else self._loadable(route, candidate)

    def _covered(self, route: Route) -> bool:
        """Whether the most that the request may cost on a shared pool is set aside; else it is, or it fails, later."""
        if self._charge is None:
            model = self._in.knowledge.routes().shared_model(route.base)
            if model is None or model.prices is None:
                return True
            size, has_files = (self._size, False) if self._form is None else (self._form.text_size, True)
            self._charge = most(
                self._head.path, size, self._document, model, self._in.clock(), has_files=has_files
            )
            self._paying = self._in.budgets.reserve(
                self._key, self._charge.reserved, functools.partial(self._contained, self._paid)
            )
        return self._paying is None

    def _paid(self, refusal: PillionError | None) -> None:
        self._paying = None
        if refusal is None:
            self._again()
        else:
            self._charge = None
            self._fail(refusal)

    def _loadable(self, route: Route, candidate: Candidate) -> Candidate:
        """It, or where its account may have no more loads now one that has the adapter. Raises `RateLimitError`."""
        if self._in.cold.under_way(route, candidate) or (refusal := self._in.fair.load(self._key)) is None:
            return candidate
        cold = {other.replica.id for other in route.candidates if not other.resident}
        warm = self._in.balance.choose(route, cold | self._tries.excluded)
        if warm is None:
            raise refusal
        return warm

    def _connect(self, plan: Plan) -> None:
        """Now, or where that is a pool's and busy, when it is this account's turn."""
        candidate = plan.candidate
        if candidate.instance.account is None:
            replica, called = candidate.replica, functools.partial(self._contained, self._called)
            self._turn = self._in.fair.turn(replica.id, self._key, called, replica.max_requests)
            if self._turn.waits:
                self._in.held_up.add(self)
                return
        self._reach(plan)

    def _called(self, refusal: PillionError | None) -> None:
        """Its turn has come, or will not."""
        if self._over:
            return
        self._in.held_up.discard(self)
        plan = self._plan
        assert plan is not None
        try:
            if refusal is not None:
                raise refusal
            if self._stands(plan):
                self._reach(plan)
            else:
                self._let_go()
                self._place()
        except PillionError as error:
            self._fail(error)

    def _stands(self, plan: Plan) -> bool:
        """Whether what it waited for is still to be asked: it may have ended, or another version may be live by now."""
        route, name = self._in.plans.resolve(self._account, self._model, self._ref), plan.route.upstream_name
        return name == route.upstream_name or (
            route.canary is not None and name == route.canary.upstream_name
        )

    def _reach(self, plan: Plan) -> None:
        connection = self._in.pool.take(plan.address)
        if connection is None:
            self._in.pool.connect(plan.address, self)
        else:
            self._send(connection)

    def _warm_up(self, plan: Plan) -> None:
        """Waits until the adapter is loaded there."""
        now, cold = self._in.clock(), self._in.cold
        self._cold_until = self._cold_until or now + cold.wait_s
        of = None if self._trace is None else self._trace.carried()
        warmed = functools.partial(self._contained, self._warmed)
        self._waiting = cold.load(plan.route, plan.candidate, self._cold_until - now, warmed, of)
        self._in.held_up.add(self)

    def _warmed(self, asked: Asked) -> None:
        self._waiting, plan = None, self._plan
        self._in.held_up.discard(self)
        assert plan is not None
        try:
            if asked.outcome not in (Outcome.LOADED, Outcome.THERE):
                self._tries.not_loaded(self._let_go(), asked, plan.route)
                self._place()
                return
            if asked.outcome is Outcome.LOADED and not self._cold and self._ticket is not None:
                self._cold = True
                self._ticket.cold()
            if self._stands(plan):
                self._connect(plan)
            else:
                self._let_go()
                self._place()
        except PillionError as error:
            self._fail(error)

    def _missing(self, plan: Plan) -> None:
        """The replica does not have the adapter, or fences it."""
        replica, route = self._let_go(), plan.route
        if route.adapter is not None and may_load(plan.candidate, route.adapter):
            self._in.cold.absent(replica, route)
            self._tries.evicted(replica, route.upstream_name)
        else:
            self._tries.absent(replica, route.upstream_name)
        self._again()

    def _send(self, connection: Outbound) -> None:
        plan = self._plan
        assert plan is not None
        self._upstream = connection
        salt = self._salt(plan.candidate)
        body = encode(self._document, plan.name, salt) if self._form is None else self._encoded(plan, salt)
        if self._trace is None:
            fields = headers.to_engine(self._head, self._engine_id, len(body))
        else:
            carried = self._trace.carried()
            fields = headers.to_engine_traced(self._head, self._engine_id, len(body), carried)
        connection.send(self, plan.prefix + fields + body)
        if self._choked:
            connection.pause()

    def _encoded(self, plan: Plan, salt: msgspec.Raw | None) -> bytes:
        """The form for the plan's engine."""
        assert self._form is not None
        values = {"model": plan.route.upstream_model(plan.candidate), **self._extra}
        return self._form.encode(
            values if salt is None else values | {"cache_salt": msgspec.json.decode(salt, type=str)}
        )

    def _salt(self, candidate: Candidate) -> msgspec.Raw | None:
        """On shared pools. What an account runs alone needs none, and its engine may not know the field."""
        if candidate.instance.account is not None:
            return None
        own = self._document.get("cache_salt")
        pepper = self._in.knowledge.routes().pepper
        return _salt_of(pepper, self._account, None if own is None else bytes(own))

    def _begin(self, reply: Reply, first: bytes) -> None:
        plan = self._plan
        assert plan is not None
        self._begun = True
        self._client.begin(reply.status, self._fields(reply, plan), reply.length, first)

    def _fields(self, reply: Reply, plan: Plan) -> bytes:
        """Of an answer that begins now."""
        now = self._told_at = self._in.clock()
        if self._ticket is not None:
            self._ticket.first_byte(now)
        cold = b"x-pillion-cold: load\r\n" if self._cold else b""
        return b"%b%b%b%b" % (reply.fields, plan.fields, cold, self._in.rates.lines(self._key, now))

    def _lost(self, *, reused: bool) -> None:
        self._reply = None if not self._begun else self._reply
        if self._begun:
            self._break(broken())
            return
        replica = self._let_go()
        if not reused:
            self._failed(replica, "lost")
        try:
            self._tries.lost(replica, reused=reused)
        except PillionError as error:
            if isinstance(error, Deadly) and self._plan is not None:
                self._in.quarantine(self._key, self._plan.route, self._client.request_id)
            self._fail(error)
            return
        self._again()

    def _again(self) -> None:
        try:
            self._place()
        except PillionError as error:
            self._fail(error)

    def _break(self, error: PillionError) -> None:
        """Ends an answer that has begun, or not, with an error."""
        reply = self._reply
        if not self._begun or reply is None:
            self._fail(error)
            return
        last = reply.failed(error)
        self._failed(self._held or "", "broken")
        self._close(error.status)
        if last is None:
            self._client.cut(error.message)
        else:
            self._client.end(last)

    def _fail(self, error: PillionError) -> None:
        fields = self._plan.served_by if self._plan is not None and self._reply is not None else ()
        self._close(error.status)
        rates = self._in.rates.fields(self._key, self._in.clock())
        self._client.fail(error, [*fields, *rates])

    def _failed(self, replica: str, reason: str) -> None:
        self._in.balance.failed(replica)
        self._in.metrics.failed(reason)

    def _part(self) -> None:
        """From an upstream whose answer is not wanted."""
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None

    def _let_go(self) -> str:
        """Of the replica that was tried; which it was."""
        held, self._held = self._held or "", None
        if self._turn is not None:
            self._turn.end()
            self._turn = None
        self._in.balance.end(held)
        return held

    def _settle(self, status: int) -> None:
        """Puts down how it ended, before the last byte goes out."""
        self._over = True
        if self._in.held_up:
            self._stop_waiting()
        self._free()
        self._leave_pool()
        if self._trace is not None:
            counted = () if self._reply is None else self._reply.tokens.counted
            self._trace.end(status, self._model, self._plan, counted, self._cold)
        ticket = self._ticket
        if ticket is None:
            return
        now = self._in.clock()
        if self._plan is not None and (adapter := self._plan.route.adapter) is not None:
            self._in.metrics.version_answered(adapter, status)
        if self._reply is not None:
            prompt, cached, completion = self._reply.tokens.counted
            ticket.tokens(prompt, cached, completion)
            if prompt or completion:
                self._in.rates.spent(self._key, (prompt or 0) + (completion or 0), now)
        self._ticket = None
        ticket.done(status, now)

    def _free(self) -> None:
        if self._held is not None:
            self._let_go()

    def _write_off(self) -> None:
        """The account of a request that crashed."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            if self._reply is not None:
                ticket.tokens(*self._reply.tokens.counted)
            ticket.done(500, self._in.clock())
        if self._trace is not None:
            self._trace.end(500, self._model, self._plan, (), self._cold)

    def _stop_waiting(self) -> None:
        """For a load or a turn."""
        self._in.held_up.discard(self)
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _leave_pool(self) -> None:
        """Its place is free, and what was set aside for it is paid or given back."""
        if not self._admitted:
            return
        self._admitted = False
        self._in.fair.dismiss(self._account)
        if self._paying is not None:
            self._paying.cancel()
        elif self._charge is not None:
            prompt, _, completion = (0, 0, 0) if self._reply is None else self._reply.tokens.counted
            spent = self._charge.cost(prompt or 0, completion or 0)
            self._in.budgets.settle(self._key, self._charge.reserved, spent)

    def _close(self, status: int) -> None:
        self._part()
        if not self._over:
            self._settle(status)


@functools.lru_cache(4096)
def _salt_of(pepper: bytes, account: str, own: bytes | None) -> msgspec.Raw:
    try:
        value = None if own is None else msgspec.json.decode(own)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise InvalidRequestError("The field 'cache_salt' is not valid JSON.", param="cache_salt") from None
    return msgspec.Raw(msgspec.json.encode(cache_salt(pepper, account, value)))


def too_large(limit: int) -> RequestTooLargeError:
    return RequestTooLargeError(f"The body is larger than {limit} bytes.")


def _failed() -> PillionError:
    return PillionError("The gateway failed at this request.")
