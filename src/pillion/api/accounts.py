"""Accounts, for the operator."""

from __future__ import annotations

from fastapi import APIRouter

from pillion.api.auth import Ctl, Operator
from pillion.api.requests import AccountBody, KeyBody
from pillion.control import accounts, keys
from pillion.control.views import AccountView, KeyView, Page

router = APIRouter(tags=["admin"])


@router.get("/v1/admin/accounts")
async def list_accounts(control: Ctl, caller: Operator) -> Page[AccountView]:
    return await accounts.listing(control)


@router.post("/v1/admin/accounts", status_code=201)
async def create_account(control: Ctl, caller: Operator, body: AccountBody) -> AccountView:
    return await accounts.create(control, body.name, body.tier)


@router.post("/v1/admin/accounts/{id}/keys", status_code=201)
async def create_account_key(control: Ctl, caller: Operator, id: str, body: KeyBody) -> KeyView:
    """A key for another account, to hand over; shown once."""
    return await keys.create_for(control, id, body.name, list(body.scopes))
