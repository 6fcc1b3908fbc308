"""The caller's account, its Hugging Face token; and for the operator, all accounts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from pillion.api.adapters import Limit
from pillion.api.auth import Anyone, Ctl, Manager, Operator
from pillion.api.keys import terms_of
from pillion.api.requests import AccountBody, AccountChangeBody, HfTokenBody, InviteBody, KeyBody
from pillion.control import accounts, invites, keys
from pillion.control.people_views import InviteView
from pillion.control.views import AccountView, Deleted, KeyView, Page

router = APIRouter()


@router.get("/v1/account", tags=["account"])
async def get_account(control: Ctl, caller: Anyone) -> AccountView:
    return await accounts.get(control, caller.account)


@router.put("/v1/account/hf-token", tags=["account"])
async def put_hf_token(control: Ctl, caller: Manager, body: HfTokenBody) -> Deleted:
    await accounts.put_hf_token(control, caller, body.token)
    return Deleted("hf-token", deleted=False)


@router.delete("/v1/account/hf-token", tags=["account"])
async def delete_hf_token(control: Ctl, caller: Manager) -> Deleted:
    return Deleted("hf-token", await accounts.delete_hf_token(control, caller))


@router.get("/v1/admin/accounts", tags=["admin"])
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


@router.post("/v1/admin/accounts", status_code=201, tags=["admin"])
async def create_account(control: Ctl, caller: Operator, body: AccountBody) -> AccountView:
    return await accounts.create(control, body.name, body.tier, local_only=body.local_only)


@router.get("/v1/admin/accounts/{id}", tags=["admin"])
async def get_any_account(control: Ctl, caller: Operator, id: str) -> AccountView:
    return await accounts.get(control, id)


@router.patch("/v1/admin/accounts/{id}", tags=["admin"])
async def change_account(control: Ctl, caller: Operator, id: str, body: AccountChangeBody) -> AccountView:
    """A suspended account's calls and logins are refused; what runs of it runs on."""
    return await accounts.update(control, caller, id, body.model_dump(exclude_unset=True))


@router.delete("/v1/admin/accounts/{id}", tags=["admin"])
async def delete_account(control: Ctl, caller: Operator, id: str) -> Deleted:
    """409 while anything of it runs. What it used and paid stays on the books."""
    return await accounts.delete(control, caller, id)


@router.post("/v1/admin/accounts/{id}/keys", status_code=201, tags=["admin"])
async def create_account_key(control: Ctl, caller: Operator, id: str, body: KeyBody) -> KeyView:
    """A key for another account, to hand over; shown once."""
    return await keys.create_for(control, caller, id, body.name, list(body.scopes), terms_of(body))


@router.post("/v1/admin/accounts/{id}/invites", status_code=201, tags=["admin"])
async def create_account_invite(control: Ctl, caller: Operator, id: str, body: InviteBody) -> InviteView:
    """For an account's first owner, or one who is locked out; the token is shown once."""
    return await invites.create_for(control, caller, id, body.email, body.role)
