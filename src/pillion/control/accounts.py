"""Accounts: the first one, those the operator makes, and their Hugging Face tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from cryptography.fernet import InvalidToken

from pillion.control import keys
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import AccountView, Page
from pillion.core.errors import InvalidRequestError, NameTakenError, NotFoundError
from pillion.core.names import check_model_name, new_id
from pillion.store.rows import Account

Tier = Literal["shared", "reserved", "dedicated"]
DEFAULT = "default"
HF_TOKEN = "hf-token"  # noqa: S105 (the name it is kept under)
ADMIN_SCOPES = ["inference", "manage", "admin"]


async def bootstrap(control: Control, preset: str | None, keep: Callable[[str], None]) -> str | None:
    """At the first start: the account `default` with an admin key, which is returned; None later on.

    `keep` stores the key before account and key are committed: a start that is cut off is followed by a first start.
    Raises `InvalidApiKeyError` where `preset` is no key.
    """
    try:
        async with control.db.transaction() as tx:
            if await tx.accounts.count():
                return None
            key = keys.new(control, preset)
            account = await tx.accounts.create(
                new_id("acc", control.choice), name=DEFAULT, now=control.clock(), tier="dedicated"
            )
            await keys.store(control, tx, account.id, "admin", ADMIN_SCOPES, key)
            keep(key.text)
    except NameTakenError:  # another control, started at the same time, was first
        return None
    control.changes.notify()
    return key.text


async def create(control: Control, name: str, tier: Tier) -> AccountView:
    check_model_name(name)
    async with control.db.transaction() as tx:
        row = await tx.accounts.create(
            new_id("acc", control.choice), name=name, now=control.clock(), tier=tier
        )
    return _view(row)


async def listing(control: Control, after: str | None, limit: int) -> Page[AccountView]:
    async with control.db.read() as tx:
        rows = await tx.accounts.list(after=after, limit=limit + 1)
    views = [_view(row) for row in rows[:limit]]
    return Page(views, len(rows) > limit, views[-1].name if len(rows) > limit else None)


async def get(control: Control, who: Principal) -> AccountView:
    return _view(await row(control, who))


async def row(control: Control, who: Principal) -> Account:
    async with control.db.read() as tx:
        found = await tx.accounts.get(who.account)
    if found is None:
        raise NotFoundError("the account of this key no longer exists.")
    return found


async def put_hf_token(control: Control, who: Principal, token: str) -> None:
    """Kept encrypted; used for imports of private repositories; never shown or logged."""
    async with control.db.transaction() as tx:
        await tx.secrets.put(who.account, HF_TOKEN, control.vault.encrypt(token.encode()))


async def delete_hf_token(control: Control, who: Principal) -> bool:
    async with control.db.transaction() as tx:
        return await tx.secrets.delete(who.account, HF_TOKEN)


async def hf_token(control: Control, account: str) -> str | None:
    async with control.db.read() as tx:
        kept = await tx.secrets.get(account, HF_TOKEN)
    try:
        return control.vault.decrypt(kept).decode() if kept else None
    except InvalidToken as error:
        raise InvalidRequestError(
            "the account's Hugging Face token cannot be read any more; PUT /v1/account/hf-token again."
        ) from error


def _view(row: Account) -> AccountView:
    return AccountView(row.id, row.name, row.tier, row.created_at)
