"""Gateways that join control by a one-time token: the operator's."""

from __future__ import annotations

from fastapi import APIRouter

from pillion.api.auth import Ctl, Operator
from pillion.api.requests import GatewayBody
from pillion.control import joining
from pillion.control.joining import GatewayView
from pillion.control.views import Deleted, Page

router = APIRouter(tags=["admin"])


@router.get("/v1/admin/gateways")
async def list_gateways(control: Ctl, caller: Operator) -> Page[GatewayView]:
    """Those that joined, those that may, and those that were revoked."""
    return await joining.listing(control)


@router.post("/v1/admin/gateways", status_code=201)
async def add_gateway(control: Ctl, caller: Operator, body: GatewayBody) -> GatewayView:
    """A token by which one gateway joins, once; it is shown in this answer only."""
    return await joining.invite(control, caller, body.name)


@router.delete("/v1/admin/gateways/{id}")
async def revoke_gateway(control: Ctl, caller: Operator, id: str) -> Deleted:
    """It is told nothing any more."""
    return await joining.revoke(control, caller, id)
