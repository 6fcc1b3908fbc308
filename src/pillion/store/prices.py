"""Prices: the operator's, for everybody. They are added and never changed."""

from __future__ import annotations

import sqlalchemy as sa

from pillion.core.errors import NameTakenError
from pillion.core.money import Price, PriceKind
from pillion.store.session import Session
from pillion.store.tables import prices


class Prices:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def all(self) -> list[Price]:
        """In the order in which they were set."""
        return await self._session.all(sa.select(prices).order_by(prices.c.id), Price)

    async def add(
        self,
        kind: PriceKind,
        item: str,
        *,
        region: str = "",
        hourly: int = 0,
        input: int = 0,
        output: int = 0,
        effective_ms: int,
        source: str,
        now: float,
    ) -> Price:
        """Raises NameTakenError where there is one of the same from the same instant on."""
        fields = {
            "kind": kind,
            "item": item,
            "region": region,
            "hourly": hourly,
            "input": input,
            "output": output,
            "effective_ms": effective_ms,
            "source": source,
            "created_at": now,
        }
        made = await self._session.add(
            prices, fields, Price, unless=("kind", "item", "region", "effective_ms")
        )
        if made is None:
            raise NameTakenError(
                f"{item!r} has a price from that instant on already; set another effective_at.",
                param="effective_at",
            )
        return made
