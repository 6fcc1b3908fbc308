"""What the agent does with adapters, as parts of the traces that asked for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from pillion.core.spans import Carried, Spans

KEPT = 4096


class Traces:
    """Of one replica."""

    def __init__(self, spans: Spans, replica: str) -> None:
        self._spans, self._replica = spans, replica
        self._origins: dict[str, Carried] = {}

    def asked(self, names: Iterable[str], of: Carried) -> None:
        """What is done with these next is part of that trace."""
        for name in names:
            self._origins.pop(name, None)
            if of:
                self._origins[name] = of
        while len(self._origins) > KEPT:
            del self._origins[next(iter(self._origins))]

    async def around(
        self, what: str, name: str, work: Callable[[], Awaitable[None]], error: Callable[[], str | None]
    ) -> None:
        """Does it. `error` tells afterwards why it came to nothing."""
        told = {"pillion.replica": self._replica, "pillion.engine_name": name}
        span = self._spans.begin(what, self._origins.pop(name, {}), told)
        try:
            await work()
        except BaseException as failure:
            span.end(type(failure).__name__)
            raise
        span.end(error())
