"""The people of the caller's account, and invites to it."""

from __future__ import annotations

from fastapi import APIRouter

from pillion.api.auth import Caller, Ctl, Owner
from pillion.api.requests import InviteBody, MemberBody
from pillion.control import invites, members
from pillion.control.people_views import InviteView, MemberView
from pillion.control.views import Deleted, Page

router = APIRouter(tags=["members"])


@router.get("/v1/members")
async def list_members(control: Ctl, caller: Caller) -> Page[MemberView]:
    return await members.listing(control, caller)


@router.patch("/v1/members/{id}")
async def change_member(control: Ctl, caller: Caller, id: str, body: MemberBody) -> MemberView:
    """A role, by an owner; a name, also one's own (`me`)."""
    return await members.update(control, caller, id, body.role, body.name)


@router.delete("/v1/members/{id}")
async def remove_member(control: Ctl, caller: Caller, id: str) -> MemberView:
    """By an owner, or oneself (`me`). Keys that the member made are revoked; the last owner stays."""
    return await members.remove(control, caller, id)


@router.get("/v1/invites")
async def list_invites(control: Ctl, caller: Owner) -> Page[InviteView]:
    return await invites.listing(control, caller)


@router.post("/v1/invites", status_code=201)
async def create_invite(control: Ctl, caller: Owner, body: InviteBody) -> InviteView:
    """The token is in this answer and nowhere else; nothing is mailed. Valid for 14 days, once."""
    return await invites.create(control, caller, body.email, body.role)


@router.delete("/v1/invites/{id}")
async def revoke_invite(control: Ctl, caller: Owner, id: str) -> Deleted:
    return await invites.revoke(control, caller, id)
