"""Accounts, for the operator."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from pillion.api.adapters import Limit
from pillion.api.auth import Ctl, Operator
from pillion.api.requests import AccountBody, KeyBody
from pillion.control import accounts, keys
from pillion.control.views import AccountView, KeyView, Page

router = APIRouter(tags=["admin"])


@router.get("/v1/admin/accounts")
async def list_accounts(
    control: Ctl,
    caller: Operator,
    after: Annotated[
        str | None, Query(max_length=63, description="Cursor: `next` of the page before.")
    ] = None,
    limit: Limit = 100,
) -> Page[AccountView]:
    """In the order of their names."""
    return await accounts.listing(control, after, limit)


@router.post("/v1/admin/accounts", status_code=201)
async def create_account(control: Ctl, caller: Operator, body: AccountBody) -> AccountView:
    return await accounts.create(control, body.name, body.tier)


@router.post("/v1/admin/accounts/{id}/keys", status_code=201)
async def create_account_key(control: Ctl, caller: Operator, id: str, body: KeyBody) -> KeyView:
    """A key for another account, to hand over; shown once."""
    return await keys.create_for(control, caller, id, body.name, list(body.scopes))
