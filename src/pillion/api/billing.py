"""Money: the caller's transactions; the operator's prices and credits. Amounts are integers of 1e-6 of the currency."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from pillion.api.adapters import After, Limit
from pillion.api.auth import Ctl, Manager, Operator
from pillion.api.requests import CreditBody, PriceBody
from pillion.control import prices, wallets
from pillion.control.billing_views import PriceView, TransactionView
from pillion.control.views import Page

router = APIRouter(tags=["billing"])

Kind = Annotated[
    Literal["topup", "hold", "settlement", "refund", "usage", "admin_correction", "bonus"] | None,
    Query(description="Those of one kind alone."),
]


@router.get("/v1/billing/transactions")
async def billing_transactions(
    control: Ctl, caller: Manager, after: After = None, limit: Limit = 100, kind: Kind = None
) -> Page[TransactionView]:
    """What changed the account's balances, oldest first."""
    return await wallets.transactions(control, caller.account, after, limit, kind)


@router.get("/v1/admin/prices")
async def list_prices(control: Ctl, caller: Operator) -> Page[PriceView]:
    """All that were ever set; of the same kind, item and region the latest that has taken effect holds."""
    return await prices.listing(control)


@router.post("/v1/admin/prices", status_code=201)
async def set_price(control: Ctl, caller: Operator, body: PriceBody) -> PriceView:
    """`gpu_hour`: `hourly` for one GPU of the type. `tokens`: `input` and `output` per 1,000,000, on shared pools."""
    return await prices.add(
        control,
        caller,
        body.kind,
        body.item,
        region=body.region,
        hourly=body.hourly,
        input=body.input,
        output=body.output,
        effective_at=body.effective_at,
    )


@router.get("/v1/admin/credits")
async def list_credits(
    control: Ctl,
    caller: Operator,
    account: Annotated[str, Query(max_length=80)],
    after: After = None,
    limit: Limit = 100,
    kind: Kind = None,
) -> Page[TransactionView]:
    """Any account's transactions, oldest first."""
    return await wallets.of_account(control, account, after, limit, kind)


@router.post("/v1/admin/credits", status_code=201)
async def give_credit(control: Ctl, caller: Operator, body: CreditBody) -> TransactionView:
    """The same `key` again changes nothing and gives the same answer."""
    return await wallets.credit(control, caller, body.account, body.kind, body.amount, body.key, body.note)
