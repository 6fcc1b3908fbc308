"""Prices: those of the configuration's GPU types, and what the operator sets."""

from __future__ import annotations

import contextlib

from pillion.billing.tariff import Tariff
from pillion.control.billing_views import PriceView
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import Page
from pillion.core.errors import InvalidRequestError, NameTakenError
from pillion.core.money import MAX_HOURLY, MAX_PER_MILLION, Price, PriceKind, micros, ms
from pillion.store.transaction import Tx

CONFIG = "config"
NOTICE_S = 2.0  # what happened before a price was known to all is never charged by it


async def ensure(control: Control) -> None:
    """A price for each GPU type whose rate in the configuration is another than at the start before."""
    now = control.clock()
    async with control.db.transaction() as tx:
        last = {p.item: p.hourly for p in await tx.prices.all() if p.source == CONFIG}
        for gpu in control.catalogue.gpu_types:
            rate = micros(gpu.rate_per_hour, "rate_per_hour")
            if rate != last.get(gpu.name, 0):
                with contextlib.suppress(NameTakenError):  # another control starts in this very millisecond
                    await tx.prices.add(
                        "gpu_hour", gpu.name, hourly=rate, effective_ms=ms(now), source=CONFIG, now=now
                    )


async def tariff_of(tx: Tx) -> Tariff:
    return Tariff(await tx.prices.all())


async def listing(control: Control) -> Page[PriceView]:
    """All there ever were, in the order in which they were set."""
    async with control.db.read() as tx:
        return Page([_view(price) for price in await tx.prices.all()])


async def add(
    control: Control,
    who: Principal,
    kind: PriceKind,
    item: str,
    *,
    region: str | None = None,
    hourly: int | None = None,
    input: int | None = None,
    output: int | None = None,
    effective_at: float | None = None,
) -> PriceView:
    """From `effective_at` on, or from now. Raises `InvalidRequestError`, `NameTakenError`."""
    now = control.clock()
    at = now + NOTICE_S if effective_at is None else effective_at
    if at < now + NOTICE_S:
        raise InvalidRequestError(
            f"effective_at must be at least {NOTICE_S:g} s ahead: what was used is charged as it was priced then.",
            param="effective_at",
        )
    _check(control, kind, item, region, {"hourly": hourly, "input": input, "output": output})
    async with control.db.transaction() as tx:
        price = await tx.prices.add(
            kind,
            item,
            region=region or "",
            hourly=hourly or 0,
            input=input or 0,
            output=output or 0,
            effective_ms=ms(at),
            source=who.key,
            now=now,
        )
        await _tell(tx, price, who.key, now)
    control.changes.notify()
    return _view(price)


def _check(
    control: Control, kind: PriceKind, item: str, region: str | None, amounts: dict[str, int | None]
) -> None:
    wanted = ("hourly",) if kind == "gpu_hour" else ("input", "output")
    given = tuple(name for name, amount in amounts.items() if amount is not None)
    if given != wanted:
        raise InvalidRequestError(
            f"a price of {kind} has {' and '.join(wanted)}, and nothing else.", param=wanted[0]
        )
    most = MAX_HOURLY if kind == "gpu_hour" else MAX_PER_MILLION
    for name in wanted:
        if not 0 <= (amounts[name] or 0) <= most:
            raise InvalidRequestError(f"{name} must be 0 to {most}, in 1e-6 of the currency.", param=name)
    catalogue = control.catalogue
    known = (
        {gpu.name for gpu in catalogue.gpu_types} | {g for r in catalogue.regions for g in r.gpus}
        if kind == "gpu_hour"
        else catalogue.names()
    )
    if item not in known:
        raise InvalidRequestError(
            f"there is no {item[:80]!r}; there are: {', '.join(sorted(known))}.", param="item"
        )
    if region is not None and (kind == "tokens" or catalogue.region(region) is None):
        raise InvalidRequestError(
            "region is for gpu_hour alone, and one of the configuration's.", param="region"
        )


async def _tell(tx: Tx, price: Price, by: str, now: float) -> None:
    detail = {"by": by, "price": price.id}
    await tx.events.append(None, at=now, kind="price_set", subject=f"price:{price.item}", detail=detail)


def _view(price: Price) -> PriceView:
    gpu = price.kind == "gpu_hour"
    return PriceView(
        id=price.id,
        kind=price.kind,
        item=price.item,
        region=price.region or None,
        hourly=price.hourly if gpu else None,
        input=None if gpu else price.input,
        output=None if gpu else price.output,
        effective_at=price.effective_ms / 1000,
        source=price.source,
        created_at=price.created_at,
    )
