"""What requests on shared pools cost: put down with the events that say so, once as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from pillion.billing.tariff import Part, Tariff, carried
from pillion.control.billing import tariff_of
from pillion.control.context import Control
from pillion.control.routes import Content
from pillion.core.budgets import TokenPrice
from pillion.core.money import Price, ms
from pillion.core.usage import Used
from pillion.store.transaction import Tx


async def charge(control: Control, tx: Tx, spool: str, used: Iterable[Used]) -> None:
    """Adds to what accounts owe. In the transaction that takes the events."""
    used = list(used)
    if not control.settings.billing or not used:
        return
    pools = await tx.runs.pools({one.instance for one in used})
    tariff = await tariff_of(tx)
    parts: dict[str, list[Part]] = defaultdict(list)
    for one in used:
        part = cost_of(tariff, one) if one.instance in pools else None
        if part is not None:
            parts[one.account].append(part)
    for account in sorted(parts):
        await _owe(tx, account, spool, parts[account])


def priced(control: Control, content: Content, prices: Iterable[Price]) -> Content:
    """What gateways are told of the catalogue's models: with what their tokens cost, where billing is on."""
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
