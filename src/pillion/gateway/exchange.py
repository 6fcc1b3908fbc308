"""One inference request: it is read, placed, sent, and its answer comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from pillion.core.errors import PillionError
from pillion.core.snapshot import Key, Replica
from pillion.gateway import headers
from pillion.gateway.answers import CutShortError, EngineDiedError, Reply, TurnedAwayError, broken, read_reply
from pillion.gateway.form import Form
from pillion.gateway.house import Exchange
from pillion.gateway.http import Head
from pillion.gateway.inbound import CLIENT_LEFT, Inbound
from pillion.gateway.outbound import Asker, Outbound
from pillion.gateway.placing import Placing
from pillion.gateway.question import Question
from pillion.gateway.replies import ReplyHead
from pillion.gateway.tally import Counted, Tally
from pillion.gateway.tries import NotResident

if TYPE_CHECKING:
    from pillion.gateway.inference import Inference

log = structlog.get_logger(__name__)


class InferenceExchange(Exchange, Asker):
    """Tries replicas until one answers. It is called by client and upstream."""

    __slots__ = (
        "_begun",
        "_choked",
        "_client",
        "_engine_id",
        "_head",
        "_in",
        "_key",
        "_over",
        "_placing",
        "_question",
        "_reply",
        "_tally",
        "_upstream",
    )
    kind = "inference"
    patient = False

    def __init__(
        self, inference: Inference, head: Head, client: Inbound, key: Key, ref: str | None, form: Form | None
    ) -> None:
        self._in = inference
        self._head = head
        self._client = client
        self._key = key
        # The engine gets a request id of ours: two clients may choose the same.
        own = head.first("x-request-id") is None
        self._engine_id = client.request_id if own else inference.new_id()
        self._upstream: Outbound | None = None
        self._reply: Reply | None = None
        self._begun = self._choked = self._over = False
        self._question = Question(head.path, form, inference.policy, inference.limits.max_body)
        self._tally = Tally(inference, head, key, client.request_id)
        self._placing = Placing(inference, self, key, ref, self._question, self._tally)

    # What the client's connection calls

    def body(self, data: bytes) -> None:
        if self._over:
            return
        try:
            self._question.feed(data)
        except PillionError as error:
            self.fail(error)

    def body_end(self) -> None:
        if self._over:
            return
        try:
            self._question.read()
            self._in.budget.earn()
            self._placing.place()
        except PillionError as error:
            self.fail(error)

    def left(self) -> None:
        self._close(CLIENT_LEFT)

    def client_full(self, full: bool) -> None:
        self._choked = full
        if self._upstream is not None:
            self._upstream.choke(full)

    # What upstream calls

    def connected(self, connection: Outbound) -> None:
        if self._over:
            self._in.pool.give(connection)
            return
        self.send(connection)

    def refused(self, why: str) -> None:
        if not self._over:
            self._placing.refused()

    def lost(self, why: str) -> None:
        if self._over:
            return
        reused = self._upstream is not None and self._upstream.reused
        self._upstream = None
        self._lost(reused=reused)

    def proceed(self) -> None:
        """Nothing waits for it."""

    def began(self, head: ReplyHead, length: int | None) -> None:
        plan = self._placing.plan
        assert plan is not None
        try:
            origin = plan.origin(self._question.wanted)
            self._reply = read_reply(head, length, origin, self._in.limits.max_answer)
            self._placing.answered()
        except NotResident:
            self._part()
            self._placing.missing(plan)
        except TurnedAwayError:
            self._part()
            self.refused("the engine turned it away")
        except EngineDiedError:
            self._part()
            self._lost(reused=False)
        except PillionError as error:
            self.fail(error)

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
            if self._tally.due(now := self._in.clock()):
                self._tally.keep(reply.tokens.counted, now)
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
            self.fail(error)
            return
        fields = b"" if self._begun else self._fields(reply)
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
        for let_go in (self._part, self._placing.end, self._leave_pool, self._write_off):
            try:
                let_go()
            except Exception as error:
                log.error("request not cleaned up", request_id=self._client.request_id, error=repr(error))
        self._client.crash(None if self._reply is None else self._reply.failed(_failed()))

    # What its placing calls

    def send(self, connection: Outbound) -> None:
        plan = self._placing.plan
        assert plan is not None
        self._upstream = connection
        body = self._question.encode(plan, self._placing.salt(plan))
        carried = self._tally.carried()
        if carried is None:
            fields = headers.to_engine(self._head, self._engine_id, len(body))
        else:
            fields = headers.to_engine_traced(self._head, self._engine_id, len(body), carried)
        connection.send(self, plan.prefix + fields + body)
        if self._choked:
            connection.choke(True)

    def fail(self, error: PillionError) -> None:
        plan = self._placing.plan
        fields = plan.served_by if plan is not None and self._reply is not None else ()
        self._close(error.status)
        rates = self._in.rates.fields(self._key, self._in.clock())
        self._client.fail(error, [*fields, *rates])

    # What a watch asks and says

    def waits_for(self) -> Replica | None:
        return None if self._begun or self._over else self._placing.at()

    def silent(self) -> None:
        """Goes to another replica, if there is one that is not out and it may: once, and paid by the budget."""
        try:
            if not self._begun and self._placing.leaves(sent=self._upstream is not None):
                self._part()
                self._reply = None
                self._placing.again()
        except Exception:
            self.crashed()

    # Below

    def _begin(self, reply: Reply, first: bytes) -> None:
        self._begun = True
        self._client.begin(reply.status, self._fields(reply), reply.length, first)

    def _fields(self, reply: Reply) -> bytes:
        """Of an answer that begins now."""
        plan, now = self._placing.plan, self._in.clock()
        assert plan is not None
        self._tally.began(now)
        cold = b"x-pillion-cold: load\r\n" if self._tally.cold else b""
        return b"%b%b%b%b" % (reply.fields, plan.fields, cold, self._in.rates.lines(self._key, now))

    def _lost(self, *, reused: bool) -> None:
        if self._begun:
            self._break(broken())
        else:
            self._reply = None
            self._placing.lost(reused=reused)

    def _break(self, error: PillionError) -> None:
        """Ends an answer that has begun, or not, with an error."""
        reply = self._reply
        if not self._begun or reply is None:
            self.fail(error)
            return
        last = reply.failed(error)
        self._placing.broken()
        self._close(error.status)
        if last is None:
            self._client.cut(error.message)
        else:
            self._client.end(last)

    def _part(self) -> None:
        """From an upstream whose answer is not wanted."""
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None

    def _close(self, status: int) -> None:
        self._part()
        if not self._over:
            self._settle(status)

    def _settle(self, status: int) -> None:
        """Puts down how it ended, before the last byte goes out."""
        self._over = True
        self._placing.end()
        counted = self._counted()
        self._placing.leave_pool(counted)
        self._tally.done(status, self._question.model, self._placing.plan, counted)

    def _leave_pool(self) -> None:
        self._placing.leave_pool(self._counted())

    def _write_off(self) -> None:
        self._tally.write_off(self._question.model, self._placing.plan, self._counted())

    def _counted(self) -> Counted:
        return (None, None, None) if self._reply is None else self._reply.tokens.counted


def _failed() -> PillionError:
    return PillionError("The gateway failed at this request.")
