"""What accounts may take of shared pools: requests at once, turns at a replica, loads on demand (SPEC §6).

A replica of a pool is given a number of requests at a time; more wait here, in a queue for each account. A free turn goes to
the account that has the fewest there, by the weight of its tier, and among equals to the one that start-time fair queueing
says, a turn costing one over the weight: Goyal, Vin and Cheng, "Start-time Fair Queuing", 1996. No account has all turns of
a replica: long answers of one would let a new one of another wait for as long. Where too many wait, the account with the
most waiting loses its newest.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pillion.core.errors import NoRoomError, PillionError, RateLimitError
from pillion.core.limits import Bucket
from pillion.core.snapshot import Key
from pillion.core.tiers import CAPS, Caps, Tier, Turns

KEPT = 1024
MAX_RETRY_S = 60.0

Ready = Callable[[PillionError | None], None]


class Turn:
    """One request's at a replica, from when it waits for it until `end`, after which `ready` is not told."""

    __slots__ = ("_line", "_telling", "account", "ready", "timer", "waits")

    def __init__(self, line: _Line, account: str, ready: Ready) -> None:
        self._line: _Line | None = line
        self.account = account
        self.ready = ready
        self.waits = False
        self.timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Handle | None = None

    def end(self) -> None:
        """It is over, or not wanted any more. Any number of times."""
        if self._telling is not None:  # its request went elsewhere in the very round in which it came
            self._telling.cancel()
        line, self._line = self._line, None
        if line is None:
            return
        if self.waits:
            line.remove(self)
        else:
            line.release(self.account)

    def lose(self, error: PillionError) -> None:
        """It will not come."""
        self._line = None
        self.tell(error)

    def tell(self, error: PillionError | None) -> None:
        self._telling = asyncio.get_running_loop().call_soon(self.ready, error)


@dataclass(slots=True)
class _Queue:
    """One account's, the oldest first. `start`: the virtual time at which its next turn may begin."""

    weight: int
    start: float
    turns: OrderedDict[Turn, None] = field(default_factory=OrderedDict)


class _Line:
    """One replica's turns. As long as one is free, nobody waits but who has as many as an account may."""

    def __init__(self, limits: Turns, clock: Callable[[], float], counted: Callable[[str], None]) -> None:
        self._limits, self._clock, self._counted = limits, clock, counted
        self.engine_takes: int | None = None
        self.turns, self.most = limits.of(None)
        self.taken = 0
        self.by_account: dict[str, int] = {}
        self.waiting = 0
        self._queues: dict[str, _Queue] = {}
        self._virtual, self._finish = 0.0, dict[str, float]()
        self._since, self._ended = 0.0, 0

    def fit(self, engine_takes: int | None) -> None:
        self.engine_takes = engine_takes
        self.turns, self.most = self._limits.of(engine_takes)

    def wait(self, turn: Turn, weight: int) -> None:
        """Raises `PillionError` where too many wait."""
        if not self.waiting:
            self._since, self._ended = self._clock(), 0
        if self.waiting >= self._limits.most_waiting:
            self._make_room(turn.account, weight)
        queue = self._queues.get(turn.account)
        if queue is None:
            start = max(self._virtual, self._finish.get(turn.account, 0.0))
            queue = self._queues[turn.account] = _Queue(weight, start)
        queue.turns[turn] = None
        self.waiting += 1
        turn.waits = True
        turn.timer = asyncio.get_running_loop().call_later(self._limits.wait_s, self._late, turn)

    def remove(self, turn: Turn) -> None:
        """From those that wait."""
        queue = self._queues[turn.account]
        del queue.turns[turn]
        if not queue.turns:
            del self._queues[turn.account]
        self._left(turn)

    def release(self, account: str) -> None:
        """A turn is over: who is next gets it."""
        self.taken -= 1
        left = self.by_account[account] - 1
        if left:
            self.by_account[account] = left
        else:
            del self.by_account[account]
        if self.waiting:
            self._ended += 1
            self._fill()

    def _fill(self) -> None:
        while self.waiting and self.taken < self.turns:
            able = [account for account in self._queues if self.by_account.get(account, 0) < self.most]
            if not able:
                return
            self._give(min(able, key=self._order))

    def _order(self, account: str) -> tuple[float, float]:
        queue = self._queues[account]
        return self.by_account.get(account, 0) / queue.weight, queue.start

    def _give(self, account: str) -> None:
        queue = self._queues[account]
        turn, _ = queue.turns.popitem(last=False)
        self._virtual = max(self._virtual, queue.start)
        queue.start = self._finish[account] = queue.start + 1 / queue.weight
        if not queue.turns:
            del self._queues[account]
        self.taken += 1
        self.by_account[account] = self.by_account.get(account, 0) + 1
        self._left(turn)
        turn.tell(None)

    def _left(self, turn: Turn) -> None:
        turn.waits = False
        if turn.timer is not None:
            turn.timer.cancel()
        self.waiting -= 1
        if not self.waiting:  # what was before does not count against anybody
            self._virtual, self._finish = 0.0, {}

    def _make_room(self, account: str, weight: int) -> None:
        """At the cost of the account with the most waiting, where that has more than this one would."""
        longest = max(self._queues, key=lambda a: len(self._queues[a].turns) / self._queues[a].weight)
        own = self._queues.get(account)
        mine = (1 if own is None else len(own.turns) + 1) / weight
        theirs = self._queues[longest]
        if longest == account or len(theirs.turns) / theirs.weight <= mine:
            raise self._refused("full", longest == account)
        turn = next(reversed(theirs.turns))
        self.remove(turn)
        turn.lose(self._refused("pushed_out", True))

    def _late(self, turn: Turn) -> None:
        self.remove(turn)
        turn.lose(self._refused("late", False))

    def _refused(self, why: str, own: bool) -> PillionError:
        self._counted(why)
        after = min(MAX_RETRY_S, self.waiting * (self._clock() - self._since) / max(1, self._ended))
        if own:
            return RateLimitError(
                "Too many requests wait for this shared pool, and this account's are the most. Send fewer at once.",
                retry_after=max(1.0, after),
            )
        return NoRoomError(
            "Too many requests wait for this shared pool. Try again shortly.", retry_after=max(1.0, after)
        )


class Fair:
    """`clock`: seconds that only grow. `counted` is told why a request was refused or lost its turn."""

    def __init__(
        self,
        caps: Mapping[Tier, Caps] = CAPS,
        turns: Turns | None = None,
        clock: Callable[[], float] = lambda: 0.0,
        counted: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._caps, self._turns = caps, turns or Turns()
        self._clock, self._counted = clock, counted
        self._under_way: dict[str, int] = {}
        self._lines: dict[str, _Line] = {}
        self._loads: dict[str, Bucket] = {}

    @property
    def waiting(self) -> int:
        """Requests that wait for a turn, at all replicas."""
        return sum(line.waiting for line in self._lines.values())

    def admit(self, key: Key) -> None:
        """One more request of this account's is for a pool, until `dismiss`. Raises `RateLimitError`."""
        under_way, most = self._under_way.get(key.account, 0), self._caps[key.tier].requests
        if under_way >= most:
            self._counted("requests")
            raise RateLimitError(
                f"{most} requests of this account are under way on shared pools, as many as may be at once. "
                "Try again when one has ended.",
                retry_after=1.0,
            )
        self._under_way[key.account] = under_way + 1

    def dismiss(self, account: str) -> None:
        left = self._under_way[account] - 1
        if left:
            self._under_way[account] = left
        else:
            del self._under_way[account]

    def turn(self, replica: str, key: Key, ready: Ready, engine_takes: int | None = None) -> Turn:
        """A turn at a pool's replica, whose engine takes so many. Where it `waits`, `ready` is told later, once: None when
        it has come, else why it does not come. Raises `PillionError` where too many wait.
        """
        line = self._lines.get(replica)
        if line is None:
            line = self._line(replica)
        if line.engine_takes != engine_takes:
            line.fit(engine_takes)
        account = key.account
        turn, own = Turn(line, account, ready), line.by_account.get(account, 0)
        if line.taken < line.turns and own < line.most:
            line.taken += 1
            line.by_account[account] = own + 1
        else:
            line.wait(turn, self._caps[key.tier].weight)
        return turn

    def load(self, key: Key) -> RateLimitError | None:
        """Counts one load on demand on a pool; the error where it is one too many."""
        now, limit = self._clock(), self._caps[key.tier].loads_per_minute
        bucket = self._loads.get(key.account)
        if bucket is None or bucket.limit != limit:
            if len(self._loads) >= KEPT:  # a full one is as good as none
                self._loads = {a: b for a, b in self._loads.items() if b.left(now) < b.limit}
            bucket = self._loads[key.account] = Bucket(limit, now)
        if bucket.left(now) < 1:
            self._counted("loads")
            return RateLimitError(
                f"This account's limit of {limit} loads per minute on shared pools is reached. Try again shortly.",
                retry_after=bucket.wait(1),
            )
        bucket.take(1)
        return None

    def _line(self, replica: str) -> _Line:
        if len(self._lines) >= KEPT:  # replicas come and go
            self._lines = {name: line for name, line in self._lines.items() if line.taken or line.waiting}
        line = self._lines[replica] = _Line(self._turns, self._clock, self._counted)
        return line
