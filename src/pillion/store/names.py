"""Whether an account uses a name for an adapter or for a model, so that one string has one meaning (SPEC §2).

True until the transaction ends only while the account is locked (`Accounts.lock`).
"""

from __future__ import annotations

import sqlalchemy as sa

from pillion.store.session import Session, owned
from pillion.store.tables import adapter_labels, adapters, registered_models


async def label_in_use(session: Session, account: str, name: str) -> bool:
    """Whether an adapter of the account has the name, or has or had the label."""
    named = sa.select(adapters.c.row_id).where(owned(adapters, account), adapters.c.name == name)
    labelled = sa.select(adapter_labels.c.adapter_row_id).where(
        owned(adapter_labels, account), adapter_labels.c.label == name
    )
    return bool(await session.value(sa.select(sa.or_(named.exists(), labelled.exists()))))


async def model_in_use(session: Session, account: str, name: str) -> bool:
    """Whether the account has a registered model of the name. The catalogue's are the caller's to know."""
    model = sa.select(registered_models.c.id).where(
        owned(registered_models, account), registered_models.c.name == name
    )
    return bool(await session.value(sa.select(model.exists())))
