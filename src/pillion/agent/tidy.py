"""The node's copies of adapters are kept within bounds by the agents that need them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from pillion.agent.home import Home
from pillion.agent.permitted import kept
from pillion.artifacts.trim import trim
from pillion.core.replica import Grant

EVERY_S = 60.0

log = structlog.get_logger(__name__)


class Tidy:
    """Never removes what a replica of this node is granted. `now` in seconds since the epoch, as files have it."""

    def __init__(self, home: Home, cache_dir: Path, most_bytes: int, now: Callable[[], float]) -> None:
        self._home, self._cache, self._most, self._now = home, cache_dir, most_bytes, now

    async def run(self) -> None:
        """Now and then, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                gone = await asyncio.to_thread(self.look)
            except OSError as error:
                log.error("copies_not_cleared", error=str(error))
                continue
            if gone:
                log.info("copies_cleared", digests=gone)

    def look(self) -> list[str]:
        """The digests that went. Raises `OSError`."""
        return trim(self._cache, self._most, self._granted(), self._now())

    def _granted(self) -> set[str]:
        homes = [Home(path) for path in self._home.directory.parent.iterdir() if path.is_dir()]
        grants = [home.read("grant.json", Grant) for home in homes]
        listed = {entry.digest for grant in grants if grant is not None for entry in grant.entries}
        return listed | {entry.digest for home in homes for entry in kept(home)}
