"""The base an adapter is checked against: its modules, from the config.json behind its source."""

from __future__ import annotations

from pillion.artifacts import models as sources
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.core.adapters.bases import Base
from pillion.core.catalogue import CatalogueModel
from pillion.core.errors import InvalidRequestError
from pillion.store.transaction import Tx


async def base_of(control: Control, who: Principal, name: str) -> Base:
    """Raises `InvalidRequestError` for a model the account cannot see or that takes no LoRA."""
    async with control.db.read() as tx:
        found, others = await _models(control, tx, who, name)
    if found is None:
        raise InvalidRequestError(
            f"base_model {name[:80]!r} does not exist; GET /v1/catalog lists the bases.", param="base_model"
        )
    if not found.lora or found.kind == "embedding":
        raise InvalidRequestError(f"base_model {name!r} does not take LoRA.", param="base_model")
    return await sources.base(name, found.source, control.settings.work_dir / "bases", others=others)


async def _models(
    control: Control, tx: Tx, who: Principal, name: str
) -> tuple[CatalogueModel | None, frozenset[str]]:
    """The model of that name, and the names and repositories of all others the account can see."""
    seen = list(control.catalogue.models)
    seen += [
        CatalogueModel(row.name, row.source, row.kind, lora=row.lora)
        for row in await tx.models.list(who.account, limit=1000)
    ]
    others = {m.name for m in seen} | {
        m.source.removeprefix("hf:").partition("@")[0] for m in seen if m.source.startswith("hf:")
    }
    return next((m for m in seen if m.name == name), None), frozenset(others)
