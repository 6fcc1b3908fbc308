"""Making an adapter of verified bytes: name, caps, first version."""

from __future__ import annotations

from typing import Any

from pillion.artifacts.receive import Stored
from pillion.control import quotas
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.core.errors import InvalidRequestError
from pillion.core.names import check_adapter_name, new_id
from pillion.store.rows import Adapter, AdapterState
from pillion.store.transaction import Tx


def check(control: Control, name: str, region: str | None) -> None:
    check_adapter_name(name, control.catalogue.names())
    if region is not None and control.catalogue.region(region) is None:
        raise InvalidRequestError(f"region {region[:80]!r} does not exist.", param="region")


async def create(
    control: Control, tx: Tx, who: Principal, name: str, base: str, region: str | None, state: AdapterState
) -> Adapter:
    """The row of a new adapter. Raises `NameTakenError`, `InsufficientQuotaError`."""
    await quotas.check_room(control, tx, who.account, "adapters")
    if control.catalogue.model(base) is None and await tx.models.get(who.account, base) is None:
        raise InvalidRequestError(f"base_model {base!r} was deleted meanwhile.", param="base_model")
    row = await tx.adapters.create(
        who.account,
        new_id("adp", control.choice),
        name=name,
        base_model=base,
        now=control.clock(),
        region=region,
        state=state,
    )
    await tx.events.append(
        who.account,
        at=control.clock(),
        kind="adapter_registered",
        subject=f"adapter:{row.id}",
        detail={"by": who.key, "name": name},
    )
    return row


async def first_version(
    control: Control, tx: Tx, row: Adapter, stored: Stored, source: dict[str, Any]
) -> Adapter:
    """It is live from now on."""
    version = await tx.versions.add(
        row.account_id,
        row.row_id,
        digest=stored.digest,
        rank=stored.verified.rank,
        alpha=float(stored.verified.alpha),
        target_modules=stored.verified.target_modules,
        size_bytes=stored.size_bytes,
        warnings=stored.verified.warnings,
        source=source,
        now=control.clock(),
    )
    await tx.adapters.set_state(row.account_id, row.row_id, "registered")
    await tx.versions.went_live(row.account_id, row.row_id, version.version, control.clock())
    live = await tx.adapters.set_live(row.account_id, row.row_id, version.version)
    assert live is not None
    return live
