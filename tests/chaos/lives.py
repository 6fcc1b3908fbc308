"""A control over a real database that is killed after any commit and begun anew, one thing done after the other."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from pillion.control import adapters, attachments, sessions
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.core.errors import PillionError, UnavailableError
from pillion.store.transaction import Tx
from tests.control.world import World

REGIONS = ("eu", "us", "asia")
PATIENCE_S = 60.0
BACKOFF_S = 61.0
MEMORY = Path("/dev/shm")  # where nothing waits for a disk


class Crash(BaseException):
    """Control is killed. Nothing of it runs on."""


class Lives:
    """Synchronous from outside: each call runs its own event loop until what was asked for is over.

    `_found` gives the world that all lives share. What else has to run beside each is `_beside`.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._dir = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self.root = Path(self._dir.name)
        self._stack = AsyncExitStack()
        self._control_stack = AsyncExitStack()
        self._left: int | None = None
        self._patience_s = PATIENCE_S
        self.crashed = False
        self.database_away = False
        self.restarts = 0
        self.world: World
        self.control: Control
        self.accounts: list[Principal] = []
        self._patience = (attachments.DETACH_WAIT_S, adapters.DELETE_WAIT_S)
        attachments.DETACH_WAIT_S = sessions.DETACH_WAIT_S = adapters.DELETE_WAIT_S = 0.05  # type: ignore[misc]
        self.run(self._begin())

    def run(self, work: Awaitable[Any]) -> Any:
        async def within() -> Any:
            async with asyncio.timeout(self._patience_s):
                return await work

        return self._loop.run_until_complete(within())

    def close(self) -> None:
        try:
            self.run(self._end())
        finally:
            self._loop.close()
            self._dir.cleanup()
            attachments.DETACH_WAIT_S = sessions.DETACH_WAIT_S = self._patience[0]
            adapters.DELETE_WAIT_S = self._patience[1]

    async def _found(self) -> World:
        raise NotImplementedError

    def _beside(self) -> Mapping[str, AbstractAsyncContextManager[Any]]:
        return {}

    async def _begin(self) -> None:
        self.world = await self._found()
        await self._start()
        self.accounts = [await self.world.account(self.control, name) for name in ("alice", "bob")]

    async def _end(self) -> None:
        await self._control_stack.aclose()
        await self._stack.aclose()

    async def _start(self) -> None:
        self.crashed, self._left = False, None
        self.database_away = False  # without one it does not begin
        self._control_stack = AsyncExitStack()
        self.control = await self._control_stack.enter_async_context(self.world.control())
        self._make_mortal(self.control)
        for part in self._beside().values():
            await self._control_stack.enter_async_context(part)

    def _make_mortal(self, control: Control) -> None:
        writes, reads = control.db.transaction, control.db.read

        def check() -> None:
            if self.crashed:
                raise Crash
            if self.database_away:
                raise UnavailableError("The database does not answer.", code="unavailable")

        @asynccontextmanager
        async def transaction() -> AsyncIterator[Tx]:
            check()
            async with writes() as tx:
                yield tx
            if self._left is not None:
                self._left -= 1
                if self._left == 0:
                    self._die()
                    raise Crash

        @asynccontextmanager
        async def read() -> AsyncIterator[Tx]:
            check()
            async with reads() as tx:
                yield tx

        control.db.transaction = transaction  # type: ignore[method-assign]
        control.db.read = read  # type: ignore[method-assign]

    def _die(self) -> None:
        self.crashed = True
        self.control.controller.ticked.notify()  # nobody waits for one who is dead

    # What is done.

    def kill_after(self, commits: int) -> None:
        """Control dies after so many more commits, whoever makes them."""
        self._left = commits

    def restart(self) -> None:
        async def again() -> None:
            await self._control_stack.aclose()
            await self._start()

        self.restarts += 1
        self.run(again())

    def do(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """What it gave; None where it was refused, or control died over it. Then control goes round once."""
        try:
            return self.run(self._step(work))
        except Crash:
            return None
        finally:
            if self.crashed:
                self.restart()

    async def _step(self, work: Callable[[], Awaitable[Any]]) -> Any:
        given = None
        try:
            given = await work()
        except UnavailableError:
            if not self.database_away:
                raise
        except PillionError as error:
            if error.status >= 500:
                raise
        await self.tick()
        return given

    async def tick(self) -> None:
        if self.crashed:
            raise Crash
        seen = self.control.controller.ticked.count
        self.control.changes.notify()
        await self.control.controller.ticked.wait(seen, 2.0)

    # What is to hold once it is quiet.

    def quiet(self) -> None:
        """Everything is whole again. Raises AssertionError where facts do not come to equal wishes."""
        self.database_away = False
        self._left = None
        if self.crashed:
            self.restart()
        self.mend()
        self.run(self._until_settled())

    def mend(self) -> None:
        """Faults end."""

    def wrong(self) -> list[str]:
        """Where facts do not equal wishes now."""
        return self.run(self.all_wrong())  # type: ignore[no-any-return]

    async def all_wrong(self) -> list[str]:
        raise NotImplementedError

    async def nudge(self) -> None:
        """Before each look."""

    async def _until_settled(self) -> None:
        wrong: list[str] = ["nothing was looked at"]
        try:
            async with asyncio.timeout(PATIENCE_S * 2 / 3):
                while wrong:
                    self.world.clock.ahead += BACKOFF_S
                    await self.nudge()
                    await self.tick()
                    wrong = await self.all_wrong()
        except TimeoutError:
            raise AssertionError("facts do not equal wishes: " + "; ".join(wrong)) from None
