"""What can be launched: the catalogue, an account's own models, regions and GPU types."""

from __future__ import annotations

from fastapi import APIRouter

from pillion.api.auth import Anyone, Caller, Ctl, Manager
from pillion.api.requests import RegisterModelBody
from pillion.control import models
from pillion.control.views import Deleted, GpuTypeView, ModelView, Page, RegionView

router = APIRouter(tags=["models"])


@router.get("/v1/catalog")
async def catalog(control: Ctl, caller: Anyone) -> Page[ModelView]:
    return models.catalog(control)


@router.get("/v1/regions")
async def regions(control: Ctl, caller: Anyone) -> Page[RegionView]:
    return models.regions(control)


@router.get("/v1/gpu-types")
async def gpu_types(control: Ctl, caller: Anyone) -> Page[GpuTypeView]:
    return models.gpu_types(control)


@router.get("/v1/registered-models")
async def registered_models(control: Ctl, caller: Caller) -> Page[ModelView]:
    return await models.registered(control, caller)


@router.post("/v1/registered-models", status_code=201)
async def register_model(control: Ctl, caller: Manager, body: RegisterModelBody) -> ModelView:
    return await models.register(control, caller, body.name, body.source, body.kind, body.lora, body.region)


@router.get("/v1/registered-models/{name}")
async def get_registered_model(control: Ctl, caller: Caller, name: str) -> ModelView:
    return await models.get(control, caller, name)


@router.delete("/v1/registered-models/{name}")
async def delete_registered_model(control: Ctl, caller: Manager, name: str) -> Deleted:
    return await models.delete(control, caller, name)
