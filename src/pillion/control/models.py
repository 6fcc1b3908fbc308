"""Base models: the operator's catalogue and accounts' own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pillion.artifacts import models as sources
from pillion.control import quotas
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import Deleted, GpuTypeView, ModelView, Page, RegionView
from pillion.core.catalogue import CatalogueModel
from pillion.core.errors import InvalidRequestError, NameTakenError, NotFoundError
from pillion.core.names import check_model_name
from pillion.store.rows import RegisteredModel


def catalog(control: Control) -> Page[ModelView]:
    return Page([_catalogue_view(model) for model in control.catalogue.models])


def regions(control: Control) -> Page[RegionView]:
    return Page([RegionView(region.name, dict(region.gpus)) for region in control.catalogue.regions])


def gpu_types(control: Control) -> Page[GpuTypeView]:
    """Those configured, and those that regions have without a word about them."""
    known = {t.name: GpuTypeView(t.name, t.memory_gib, t.rate_per_hour) for t in control.catalogue.gpu_types}
    for region in control.catalogue.regions:
        for name in region.gpus:
            known.setdefault(name, GpuTypeView(name, 0.0, "0"))
    return Page([known[name] for name in sorted(known)])


async def check_catalogue(control: Control) -> None:
    """Raises `NameTakenError` where a model of the configuration is called what an account calls something of its own: one
    string has one meaning (SPEC §2).
    """
    async with control.db.read() as tx:
        taken = await tx.everyone.names_among({model.name for model in control.catalogue.models})
    if taken:
        owners: dict[str, list[str]] = {}
        for name, account in taken:
            owners.setdefault(name, []).append(account)
        found = "; ".join(f"{name!r} (of {', '.join(accounts[:5])})" for name, accounts in owners.items())
        raise NameTakenError(
            "[[models]]: accounts have adapters, labels (former ones count) or registered models of these names: "
            f"{found}. Give the models other names."
        )


async def registered(control: Control, who: Principal) -> Page[ModelView]:
    async with control.db.read() as tx:
        return Page([_view(row) for row in await tx.models.list(who.account, limit=1000)])


async def get(control: Control, who: Principal, name: str) -> ModelView:
    async with control.db.read() as tx:
        row = await tx.models.get(who.account, name)
    if row is None:
        raise NotFoundError(f"you have no registered model {name[:80]!r}.")
    return _view(row)


async def register(
    control: Control, who: Principal, name: str, source: str, kind: str, lora: bool, region: str | None
) -> ModelView:
    """Register an account's own base. A `path:` must lie under the account's root and is pinned to its region."""
    check_model_name(name)
    if control.catalogue.model(name) is not None:
        raise NameTakenError(f"name {name!r} is a model of the catalogue; choose another.", param="name")
    if region is not None and control.catalogue.region(region) is None:
        raise InvalidRequestError(f"region {region[:80]!r} does not exist.", param="region")
    if kind == "embedding" and lora:
        raise InvalidRequestError("embedding models never take LoRA; send lora: false.", param="lora")
    if source.startswith("path:"):
        found = await asyncio.to_thread(_under_root, control, who, source)
        source, region = f"path:{found}", region or control.catalogue.regions[0].name
    else:
        sources.parse_source(source)
    async with control.db.transaction() as tx:
        await quotas.check_room(control, tx, who.account, "models")
        row = await tx.models.create(
            who.account, name=name, source=source, kind=kind, lora=lora, region=region, now=control.clock()
        )
    control.changes.notify()
    return _view(row)


async def delete(control: Control, who: Principal, name: str) -> Deleted:
    """Raises `ConflictError` while an adapter or a running instance needs it."""
    async with control.db.transaction() as tx:
        if not await tx.models.delete(who.account, name):
            raise NotFoundError(f"you have no registered model {name[:80]!r}.")
    control.changes.notify()
    return Deleted(name, unacknowledged=await control.controller.published())


async def launchable(control: Control, who: Principal, name: str) -> tuple[CatalogueModel, str | None]:
    """The model of that name as this account sees it, and the region it is bound to. Raises `NotFoundError`."""
    found = control.catalogue.model(name)
    if found is not None:
        return found, None
    async with control.db.read() as tx:
        row = await tx.models.get(who.account, name)
    if row is None:
        raise NotFoundError(
            f"there is no model {name[:80]!r}; GET /v1/catalog lists what can be launched.",
            code="model_not_found",
        )
    if row.source.startswith("path:"):  # what lies there now, whatever lay there when it was registered
        await asyncio.to_thread(_under_root, control, who, row.source)
    return CatalogueModel(row.name, row.source, row.kind, lora=row.lora), row.region


def _under_root(control: Control, who: Principal, source: str) -> Path:
    return sources.check_under_root(source.removeprefix("path:"), control.settings.models_root / who.account)


def _view(row: RegisteredModel) -> ModelView:
    return ModelView(row.name, row.kind, row.source, row.lora, "vllm", True, row.region, row.created_at)


def _catalogue_view(model: CatalogueModel) -> ModelView:
    return ModelView(model.name, model.kind, model.source, model.lora, model.engine)
