"""The adapters of one engine: their names, whether they are open, and what is in flight with them."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from .asgi import Refusal
from .flight import Flight
from .port import EnginePort, EngineRefused

# How long a cut-off request may take to leave the engine before its task is cancelled, and again after that.
CUT_GRACE_S = 5.0
# How often, and how far apart, the engine is asked whether an adapter is gone.
UNLOAD_PROOFS = 20
UNLOAD_PROOF_EVERY_S = 0.1


@dataclass
class Entry:
    """A model name and the requests in flight with it. `leaving` shuts out even the agent.

    `requests`: how many of gateways have begun since it was loaded.
    """

    name: str
    path: str
    open: bool = False
    leaving: bool = False
    flights: set[Flight] = field(default_factory=set)
    requests: int = 0


class Roster:
    """Loads, opens, closes and unloads adapters; one operation per name at a time.

    `touched` tells whether anything was ever loaded, or tried.
    """

    def __init__(self, port: EnginePort, base_names: Iterable[str], slots: int):
        self.bases = {name: Entry(name, "", open=True) for name in base_names}
        self.adapters: dict[str, Entry] = {}
        self.touched = False
        self._port = port
        self._slots = slots
        self._loading: set[str] = set()
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    async def load(self, name: str, path: str) -> float:
        """Loads an adapter, closed; one that is there already stays as it is. Returns milliseconds.

        Refusals: 409 `name_taken`, 409 `engine_full`, 422 `engine_refused`.
        """
        async with self._alone(name):
            known = self.adapters.get(name)
            if name in self.bases or (known is not None and known.path != path):
                raise Refusal(409, "name_taken", f"'{name}' is taken by another model.", param="name")
            if known is not None and name in await self._port.resident():
                return 0.0
            if known is None and len(self.adapters) + len(self._loading) >= self._slots:
                raise Refusal(409, "engine_full", f"All {self._slots} slots of this engine are taken.")
            if known is not None:
                known.open = False
            self._loading.add(name)
            self.touched = True
            try:
                return await self._add(name, path)
            finally:
                self._loading.discard(name)

    async def set_open(self, name: str, is_open: bool) -> None:
        """Lets requests of the gateway in, or keeps them out. 404 for an unknown name."""
        async with self._alone(name):
            self._known(name).open = is_open

    async def unload(self, name: str, deadline_s: float, *, only_idle: bool = False) -> dict[str, float]:
        """Drains, cuts off what is left after `deadline_s`, unloads and has the engine prove it.

        Returns `drained`, `cut` and `unload_ms`. 500 `unload_unproved` when the engine still holds the
        adapter or a request with it; the name then stays known, closed, and can be unloaded again.

        Asked again with a shorter deadline while it drains, the shorter one holds. `only_idle`: 409 `adapter_busy`
        where a request is in flight with it, and nothing is done.
        """
        if not only_idle:
            await self._hasten(name, deadline_s)
        async with self._alone(name):
            entry = self._known(name)
            if only_idle and entry.flights:
                raise Refusal(409, "adapter_busy", f"Requests with '{name}' are in flight.", param="name")
            entry.open = False
            entry.leaving = True
            try:
                drained, cut = await self._drain(entry, deadline_s)
                started = time.perf_counter()
                await self._port.remove(name)
                await self._prove_gone(name)
            finally:
                entry.leaving = False
            del self.adapters[name]
            return {"drained": drained, "cut": cut, "unload_ms": _since(started)}

    async def _add(self, name: str, path: str) -> float:
        started = time.perf_counter()
        try:
            await self._port.add(name, path)
        except EngineRefused as refused:
            raise Refusal(422, "engine_refused", str(refused), param="path") from None
        took = _since(started)
        if name not in await self._port.resident():
            raise Refusal(422, "engine_refused", f"The engine took '{name}' and does not hold it.")
        self.adapters.setdefault(name, Entry(name, path))
        return took

    async def _hasten(self, name: str, deadline_s: float) -> None:
        entry = self.adapters.get(name)
        if entry is not None and entry.leaving:
            for flight in await _wait(set(entry.flights), deadline_s):
                flight.cut()

    async def _drain(self, entry: Entry, deadline_s: float) -> tuple[int, int]:
        flights = set(entry.flights)
        late = await _wait(flights, deadline_s)
        for flight in late:
            flight.cut()
        cut = sum(flight.is_cut for flight in flights)
        stuck = await _wait(late, CUT_GRACE_S)
        for flight in stuck:
            flight.cancel()
        if await _wait(stuck, CUT_GRACE_S):
            raise Refusal(500, "unload_unproved", f"Requests with '{entry.name}' do not end.")
        return len(flights) - cut, cut

    async def _prove_gone(self, name: str) -> None:
        for _ in range(UNLOAD_PROOFS):
            if name not in await self._port.resident():
                return
            await asyncio.sleep(UNLOAD_PROOF_EVERY_S)
            await self._port.remove(name)
        raise Refusal(500, "unload_unproved", f"The engine still holds '{name}'.")

    def _known(self, name: str) -> Entry:
        entry = self.adapters.get(name)
        if entry is None:
            raise Refusal(404, "not_found", f"No adapter '{name}' is loaded here.", param="name")
        return entry

    @asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(name)
            if users > 1:
                self._locks[name] = (lock, users - 1)


async def _wait(flights: set[Flight], timeout_s: float) -> set[Flight]:
    """Those of `flights` that are not done after `timeout_s`."""
    pending = {flight.done for flight in flights if not flight.done.done()}
    if pending:
        await asyncio.wait(pending, timeout=timeout_s)
    return {flight for flight in flights if not flight.done.done()}


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
