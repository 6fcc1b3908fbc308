"""What permits brought here, beside what the grant lists; kept on disk, so that the next agent knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

import msgspec
import structlog

from pillion.agent.home import Home
from pillion.core.replica import GrantEntry

FILE = "permitted.json"
AGAIN_S = 5.0

log = structlog.get_logger(__name__)


class _Kept(msgspec.Struct, frozen=True):
    entries: tuple[GrantEntry, ...]


def kept(home: Home) -> tuple[GrantEntry, ...]:
    """What is on disk."""
    found = home.read(FILE, _Kept)
    return found.entries if found is not None else ()


class Permitted:
    """The entries that are to be here because they were asked for, until they are evicted or dropped.

    What the last moment before a crash brought may be missing: it is unloaded, and loaded again when it is asked for.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._entries = {entry.engine_name: entry for entry in kept(home)}
        self._changed = asyncio.Event()

    @property
    def entries(self) -> Collection[GrantEntry]:
        return self._entries.values()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def add(self, entry: GrantEntry) -> None:
        if self._entries.get(entry.engine_name) != entry:
            self._entries[entry.engine_name] = entry
            self._changed.set()

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            if self._entries.pop(name, None) is not None:
                self._changed.set()

    def clear(self) -> None:
        self.drop(list(self._entries))

    async def run(self) -> None:
        """Brings every change to the disk, until cancelled. Where that is full it goes on trying."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await asyncio.to_thread(self._home.write, FILE, _Kept(tuple(self._entries.values())))
            except OSError as error:
                log.error("permitted_not_kept", error=str(error))
                self._changed.set()
                await asyncio.sleep(AGAIN_S)
