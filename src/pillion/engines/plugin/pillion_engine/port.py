"""What the gate needs of an engine."""

from dataclasses import dataclass
from typing import Literal, Protocol

LoraPath = Literal["grouped", "native", "refused"]


class EngineRefused(Exception):
    """The engine would not load an adapter; the message is the engine's own."""


@dataclass(frozen=True)
class EngineFacts:
    """What an engine is.

    `lora` says how adapters are computed: `grouped` is Pillion's CPU path, `native` the engine's own,
    `refused` the engine's own where it is not known to keep base and adapter rows apart: the base is then
    not served (`reason` says why). `max_requests`: how many it answers at a time, where that is known; more wait in it.
    """

    engine: str
    version: str
    lora: LoraPath
    reason: str | None = None
    max_requests: int | None = None


class EnginePort(Protocol):
    """Adapters of one running engine, by name."""

    async def facts(self) -> EngineFacts:
        """What the engine is. Asked once."""
        ...

    def dead(self) -> bool:
        """Whether the engine behind the server is gone: what the server still answers are its excuses."""
        ...

    async def add(self, name: str, path: str) -> None:
        """Loads the adapter in the directory `path`. Raises EngineRefused, leaving nothing behind."""
        ...

    async def remove(self, name: str) -> None:
        """Stops what still runs with the adapter and takes it out of the engine. Unknown names: no error."""
        ...

    async def resident(self) -> set[str]:
        """The names the engine itself says it holds, asked anew each time."""
        ...
