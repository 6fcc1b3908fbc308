"""What requests on shared pools cost: put down with the events that say so, once as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from msgspec.structs import replace

from pillion.billing.tariff import Part, Tariff, carried
from pillion.control.context import Control
from pillion.control.prices import tariff_of
from pillion.control.routes import Content
from pillion.core.budgets import TokenPrice
from pillion.core.money import Price, ms
from pillion.core.usage import Used
from pillion.store.transaction import Tx


async def parts(control: Control, tx: Tx, used: Sequence[Used]) -> list[Part | None]:
    """What each of the requests costs; None for what is free."""
    if not control.settings.billing or not used:
        return [None] * len(used)
    pools = await tx.runs.pools({one.instance for one in used})
    tariff = await tariff_of(tx)
    return [cost_of(tariff, one) if one.instance in pools else None for one in used]


async def owe(tx: Tx, spool: str, used: Sequence[Used], parts: Sequence[Part | None]) -> None:
    """Adds to what accounts owe. In the transaction that takes the events."""
    by: dict[str, list[Part]] = defaultdict(list)
    for one, part in zip(used, parts, strict=True):
        if part is not None:
            by[one.account].append(part)
    for account in sorted(by):
        await _owe(tx, account, spool, by[account])


def month_of(now: float) -> float:
    """When its month began (UTC)."""
    at = datetime.fromtimestamp(now, UTC)
    return datetime(at.year, at.month, 1, tzinfo=UTC).timestamp()


async def find_spent_keys(control: Control) -> None:
    """Looks for keys whose spend limit for the month is reached."""
    async with control.db.read() as tx:
        spent = await tx.intake.spent_keys(month_of(control.clock()))
    if spent != control.spent_keys:
        control.spent_keys = spent
        control.changes.notify()


def priced(control: Control, content: Content, prices: Iterable[Price]) -> Content:
    """What gateways are told: with what the tokens of the catalogue's models cost, and which keys have spent enough."""
    if not control.settings.billing:
        return content
    by: dict[str, list[TokenPrice]] = defaultdict(list)
    for price in sorted(prices, key=lambda price: (price.effective_ms, price.id)):
        if price.kind == "tokens":
            by[price.item].append(TokenPrice(price.effective_ms, price.input, price.output))
    contexts = {model.name: model.options.get("max_model_len") for model in control.catalogue.models}
    keys, models, *rest = content
    told = tuple(
        replace(model, prices=tuple(by[model.name]), context=contexts.get(model.name))
        if model.account is None
        else model
        for model in models
    )
    if control.spent_keys:
        keys = {
            lookup: replace(key, spent=True) if key.id in control.spent_keys else key
            for lookup, key in keys.items()
        }
    return (keys, told, *rest)  # type: ignore[return-value]


def cost_of(tariff: Tariff, used: Used) -> Part | None:
    """By the prices of the moment it began. What was not told was not used."""
    return tariff.tokens(used.base, ms(used.at), used.prompt_tokens or 0, used.completion_tokens or 0)


async def _owe(tx: Tx, account: str, spool: str, parts: list[Part]) -> None:
    await tx.ledger.lock(account)
    carries = await tx.bills.carries(account)
    remainders: Mapping[int, int] = {price: carry.remainder for price, carry in carries.items()}
    total = 0
    for price, (whole, rest) in carried(parts, remainders).items():
        before = carries[price].owed if price in carries else 0
        await tx.bills.carry(account, price, rest, owed=before + whole)
        total += whole
    covered = await _cover(tx, account, spool, sum(part.micros for part in parts))
    await tx.ledger.set_aside(account, owed=total, leased=-covered)


async def _cover(tx: Tx, account: str, spool: str, amount: int) -> int:
    """Of what the gateway has in hand of this account, that much is spent; how much that was."""
    covered = 0
    for one in await tx.slices.of(account, spool):
        part = min(one.outstanding, amount - covered)
        if part:
            await tx.slices.spend(one, part)
            covered += part
    return covered
