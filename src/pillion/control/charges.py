"""What requests on shared pools cost: put down with the events that say so, once as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from msgspec.structs import replace

from pillion.billing.tariff import Part, Tariff, carried
from pillion.control.context import Control
from pillion.control.prices import tariff_of
from pillion.core.budgets import TokenPrice
from pillion.core.money import Price, ms
from pillion.core.snapshot import Content
from pillion.core.usage import Used
from pillion.store.slices import Slice
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
    if not by:
        return
    await tx.owing.lock(by.keys())
    known = await tx.owing.carries(by.keys())
    hands = await tx.owing.slices(by.keys(), spool)
    spent = _covered(hands, used, parts)
    owed: dict[str, int] = {}
    carry: dict[tuple[str, int], tuple[int, int]] = {}
    for account, of in by.items():
        before = {price: found for (owner, price), found in known.items() if owner == account}
        whole = carried(of, {price: found.remainder for price, found in before.items()})
        for price, (more, rest) in whole.items():
            carry[account, price] = (before[price].owed if price in before else 0) + more, rest
        owed[account] = sum(more for more, _ in whole.values())
    await tx.owing.carry(carry)
    await tx.owing.spend(spent)
    leased = {account: -sum(a for one, a in spent.items() if one.account_id == account) for account in by}
    await tx.owing.set_aside({account: (leased[account], owed[account]) for account in by})


def _covered(hands: Sequence[Slice], used: Sequence[Used], parts: Sequence[Part | None]) -> dict[Slice, int]:
    """How much of each slice is spent by now: first of the key's own where it has a limit, and never of another key's."""
    costs: dict[tuple[str, str], int] = defaultdict(int)
    for one, part in zip(used, parts, strict=True):
        if part is not None:
            costs[one.account, one.key] += part.micros
    spent: dict[Slice, int] = defaultdict(int)
    for (account, key), cost in costs.items():
        for of in (key, ""):
            for hand in hands:
                if (hand.account_id, hand.key_id) == (account, of):
                    part_ = min(hand.outstanding - spent[hand], cost)
                    spent[hand] += part_
                    cost -= part_
    return spent


def month_of(now: float) -> float:
    """When its month began (UTC)."""
    at = datetime.fromtimestamp(now, UTC)
    return datetime(at.year, at.month, 1, tzinfo=UTC).timestamp()


def priced(control: Control, content: Content, prices: Iterable[Price]) -> Content:
    """What gateways are told: with what the tokens of the catalogue's models cost."""
    if not control.settings.billing:
        return content
    by: dict[str, list[TokenPrice]] = defaultdict(list)
    for price in sorted(prices, key=lambda price: (price.effective_ms, price.id)):
        if price.kind == "tokens":
            by[price.item].append(TokenPrice(price.effective_ms, price.input, price.output))
    contexts = {model.name: model.options.get("max_model_len") for model in control.catalogue.models}
    models = tuple(
        replace(model, prices=tuple(by[model.name]), context=contexts.get(model.name))
        for model in content.models
    )
    return Content(content.accounts, models, content.instances, content.touched)


def cost_of(tariff: Tariff, used: Used) -> Part | None:
    """By the prices of the moment it began. What was not told was not used."""
    return tariff.tokens(used.base, ms(used.at), used.prompt_tokens or 0, used.completion_tokens or 0)
