"""Each gateway's share of the limits of keys, by what was asked of it lately."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pillion.core.limits import shares
from pillion.core.usage import Demand, Shares

MEMORY = 0.7  # of the demand before, at each report
FORGOTTEN_S = 10.0

Kind = Literal["requests", "tokens"]


class LimitShares:
    """What gateways said last. In memory: after a restart gateways say it again within a second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._demand: dict[tuple[Kind, str], dict[str, tuple[float, float]]] = {}

    def told(self, demand: Demand) -> Shares:
        """Takes a gateway's demand; its shares of all keys that it has asked for lately."""
        now = self._clock()
        for kind, asked in (("requests", demand.requests), ("tokens", demand.tokens)):
            for key, amount in asked.items():
                by = self._demand.setdefault((kind, key), {})  # type: ignore[arg-type]
                before, _ = by.get(demand.gateway, (0.0, now))
                by[demand.gateway] = (MEMORY * before + (1 - MEMORY) * amount, now)
        found = Shares({}, {})
        for (kind, key), by in list(self._demand.items()):
            for gateway in [g for g, (_, at) in by.items() if now - at > FORGOTTEN_S]:
                del by[gateway]
            if not by:
                del self._demand[kind, key]
            elif demand.gateway in by:
                part = shares({gateway: amount for gateway, (amount, _) in by.items()})
                getattr(found, kind)[key] = part[demand.gateway]
        return found
