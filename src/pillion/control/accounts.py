"""Accounts: the first one, those the operator makes, suspends and deletes; their caps and Hugging Face tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cryptography.fernet import InvalidToken

from pillion.control import keys
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import AccountView, Deleted, Page
from pillion.core.errors import ConflictError, InvalidRequestError, NameTakenError, NotFoundError
from pillion.core.names import check_model_name, new_id
from pillion.core.tiers import Caps, Tier
from pillion.store.rows import Account
from pillion.store.transaction import Tx

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


async def create(control: Control, name: str, tier: Tier, *, local_only: bool = False) -> AccountView:
    check_model_name(name)
    async with control.db.transaction() as tx:
        row = await tx.accounts.create(
            new_id("acc", control.choice), name=name, now=control.clock(), tier=tier, local_only=local_only
        )
    return _view(control, row, 0)


async def listing(control: Control, after: str | None, limit: int) -> Page[AccountView]:
    async with control.db.read() as tx:
        rows = await tx.accounts.list(after=after, limit=limit + 1)
        used = await tx.everyone.adapters_of([row.id for row in rows[:limit]])
    views = [_view(control, row, used.get(row.id, 0)) for row in rows[:limit]]
    return Page(views, len(rows) > limit, views[-1].name if len(rows) > limit else None)


async def get(control: Control, account: str) -> AccountView:
    """Raises `NotFoundError`."""
    async with control.db.read() as tx:
        return await _seen(control, tx, await _row(tx, account))


async def update(control: Control, who: Principal, account: str, changes: dict[str, Any]) -> AccountView:
    """Of `name`, `tier`, `local_only`, `suspended`. A suspended account's calls are refused; what runs runs on.

    Answered when every connected gateway keeps to it, or with those that have not said so.
    """
    values = {name: value for name, value in changes.items() if value is not None}
    if "name" in values:
        check_model_name(values["name"])
    if values.get("suspended") and account == who.account:
        raise ConflictError("this is your own account: nobody could undo it.")
    async with control.db.transaction() as tx:
        before = await _row(tx, account)
        if "suspended" in values:
            values["suspended_at"] = (before.suspended_at or control.clock()) if values["suspended"] else None
            del values["suspended"]
        row = await tx.accounts.update(account, **values) if values else before
        await _record(control, tx, account, "account_changed", who, changes)
        view = await _seen(control, tx, row)
    control.changes.notify()
    return replace(view, unacknowledged=await control.controller.published())


async def delete(control: Control, who: Principal, account: str) -> Deleted:
    """Its keys, members, secrets, models and adapters go; what it used and paid stays on the books.

    Raises `ConflictError` while anything of it runs.
    """
    if account == who.account:
        raise ConflictError("this is your own account; another operator can delete it.")
    async with control.db.transaction() as tx:
        await _row(tx, account)
        row = await tx.accounts.lock(account)
        await _refuse_running(tx, account)
        await _empty(control, tx, account)
        gone = {
            "name": f"{row.name}~{row.id}",
            "suspended_at": control.clock(),
            "deleted_at": control.clock(),
        }
        await tx.accounts.update(account, **gone)
        await _record(control, tx, account, "account_deleted", who, {"name": row.name})
    control.changes.notify()
    return Deleted(account, unacknowledged=await control.controller.published())


async def caps(control: Control, account: str) -> Caps:
    """What its tier may have. Raises `NotFoundError`."""
    async with control.db.read() as tx:
        return control.settings.caps[(await _row(tx, account)).tier]


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


async def _row(tx: Tx, account: str) -> Account:
    row = await tx.accounts.get(account)
    if row is None or row.deleted_at is not None:
        raise NotFoundError(f"there is no account {account[:80]!r}.")
    return row


async def _refuse_running(tx: Tx, account: str) -> None:
    unfinished = await tx.everyone.unfinished_instances()
    running = [str(instance.id) for instance in unfinished if instance.account_id == account]
    loaded = await tx.attachments.list(account)
    working = [
        job.id for job in await tx.jobs.list(account, limit=10_000) if job.state in ("queued", "running")
    ]
    found = [
        *([f"instances {', '.join(running)}"] if running else []),
        *([f"{len(loaded)} attached or loaded adapters"] if loaded else []),
        *([f"jobs {', '.join(working[:20])}"] if working else []),
    ]
    if found:
        raise ConflictError(
            f"the account still has {'; '.join(found)}. End them with a key of the account, then delete it."
        )


async def _empty(control: Control, tx: Tx, account: str) -> None:
    while found := await tx.adapters.list(account):
        for adapter in found:
            await tx.adapters.delete(account, adapter.row_id)
    for model in await tx.models.list(account, limit=100_000):
        await tx.models.delete(account, model.name)
    await tx.keys.revoke_all(account, control.clock())
    await tx.logins.end_all(account)
    await tx.invites.clear(account)
    for member in await tx.members.list(account):
        await tx.members.delete(account, member.id)
    await tx.secrets.delete(account, HF_TOKEN)


async def _record(
    control: Control, tx: Tx, account: str, kind: str, who: Principal, detail: dict[str, Any]
) -> None:
    await tx.events.append(
        account, at=control.clock(), kind=kind, subject=f"account:{account}", detail={"by": who.key, **detail}
    )


async def _seen(control: Control, tx: Tx, row: Account) -> AccountView:
    return _view(control, row, await tx.accounts.has(row.id, "adapters"))


def _view(control: Control, row: Account, adapters: int) -> AccountView:
    most = control.settings.caps[row.tier]
    return AccountView(
        row.id,
        row.name,
        row.tier,
        row.created_at,
        local_only=row.local_only,
        suspended_at=row.suspended_at,
        adapters=adapters,
        max_adapters=most.adapters,
        max_adapter_bytes=most.adapter_bytes,
    )
