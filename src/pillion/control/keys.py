"""API keys: who calls, what they may do, and a revocation that every gateway has heard of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pillion.control import quotas
from pillion.control.context import Control
from pillion.control.views import KeyView, Page
from pillion.core import addresses, keys
from pillion.core.errors import (
    InsufficientScopeError,
    InvalidApiKeyError,
    InvalidRequestError,
    NotFoundError,
    NotLoggedInError,
    account_suspended,
    address_not_allowed,
)
from pillion.core.names import new_id
from pillion.core.permissions import Action, Role, may, may_give, refusal
from pillion.store.rows import ApiKey, Caller, Member
from pillion.store.transaction import Tx


@dataclass(frozen=True)
class Principal:
    """Who asks: a key, or a member who is logged in (`key` is the member's id then).

    `member`: who that is, or who made the key; `role` is theirs.
    """

    account: str
    key: str
    scopes: frozenset[str]
    role: Role | None = None
    member: str | None = None

    def may(self, action: Action) -> bool:
        return may(action, self.scopes, self.role)

    def need(self, action: Action) -> Principal:
        """Itself, if it may do this. Raises `InsufficientScopeError` otherwise."""
        if self.may(action):
            return self
        raise InsufficientScopeError(refusal(action, self.scopes, self.role))


@dataclass(frozen=True)
class Terms:
    """What a key is limited to. `expires_at`: seconds since the epoch. `allow`: CIDRs; anywhere where there are none.

    `spend_limit`: micro-units of the currency per calendar month (UTC).
    """

    expires_at: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    allow: tuple[str, ...] = ()
    spend_limit: int | None = None


FREE = Terms()


async def authenticate(control: Control, text: str, address: str = "") -> Principal:
    """Who holds a key, and calls from `address`.

    Raises `InvalidApiKeyError`, the same for every reason; `AddressNotAllowedError`, `AccountSuspendedError`.
    """
    key = keys.parse(text)
    caller = None
    if key is not None:
        async with control.db.read() as tx:
            caller = await tx.everyone.caller_by_lookup(key.lookup)
    if key is None or caller is None or not keys.matches(control.pepper, text, caller.key.digest):
        raise _invalid()
    return admitted(control, caller, address)


def admitted(control: Control, caller: Caller, address: str) -> Principal:
    """The same for a key that is known to be theirs."""
    row = caller.key
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= control.clock()):
        raise _invalid()
    if row.allow and not addresses.within(address, row.allow):
        raise address_not_allowed(address)
    if caller.suspended:
        raise account_suspended()
    return Principal(row.account_id, row.id, frozenset(row.scopes), caller.role, row.created_by)


def _invalid() -> InvalidApiKeyError:
    return InvalidApiKeyError("the API key is not valid: malformed, unknown, revoked or expired.")


async def listing(control: Control, who: Principal) -> Page[KeyView]:
    """All of the account; for members who own no account, those that they made."""
    async with control.db.read() as tx:
        return Page([view(row) for row in await tx.keys.list(who.account) if _theirs(who, row)])


async def get(control: Control, who: Principal, id: str) -> KeyView:
    async with control.db.read() as tx:
        return view(await _row(tx, who, id))


async def create(
    control: Control, who: Principal, name: str, scopes: list[str], terms: Terms = FREE
) -> KeyView:
    """A new key of the caller's account. Nobody hands out more than they have."""
    if not may_give(who.scopes, scopes):
        beyond = sorted(set(scopes) - who.scopes - {"inference"})
        raise InsufficientScopeError(
            f"you cannot make a key with the scope {', '.join(map(repr, beyond))}, which you do not have."
        )
    return await _mint(control, who.account, name, scopes, who.key, _checked(control, terms), who.member)


async def create_for(
    control: Control, who: Principal, account: str, name: str, scopes: list[str], terms: Terms = FREE
) -> KeyView:
    """A key for any account, by the operator."""
    async with control.db.read() as tx:
        row = await tx.accounts.get(account)
    if row is None or row.deleted_at is not None:
        raise NotFoundError(f"there is no account {account[:80]!r}.")
    return await _mint(control, account, name, scopes, who.key, _checked(control, terms))


async def mint(control: Control, account: str, name: str, scopes: list[str], terms: Terms = FREE) -> KeyView:
    """A new key of an account, stored. Its text is in the answer alone."""
    key = new(control)
    async with control.db.transaction() as tx:
        row = await store(control, tx, account, name, scopes, key, terms)
    control.changes.notify()
    return view(row, key.text)


def new(control: Control, text: str | None = None) -> keys.Key:
    """A new key, or the one in `text`. Raises `InvalidApiKeyError` where that is none."""
    key = keys.mint(control.choice) if text is None else keys.parse(text)
    if key is None:
        raise InvalidApiKeyError(
            "PILLION_ADMIN_KEY is not a well-formed key (pil_ and 50 characters, the last 6 a checksum)."
        )
    return key


async def store(
    control: Control,
    tx: Tx,
    account: str,
    name: str,
    scopes: list[str],
    key: keys.Key,
    terms: Terms = FREE,
    member: str | None = None,
) -> ApiKey:
    return await tx.keys.create(
        account,
        new_id("key", control.choice),
        lookup=key.lookup,
        digest=keys.digest(control.pepper, key.text),
        name=name,
        scopes=list(dict.fromkeys(scopes)),
        now=control.clock(),
        expires_at=terms.expires_at,
        requests_per_minute=terms.requests_per_minute,
        tokens_per_minute=terms.tokens_per_minute,
        allow=terms.allow,
        spend_limit=terms.spend_limit,
        by=member,
    )


async def update(control: Control, who: Principal, id: str, changes: Mapping[str, Any]) -> KeyView:
    """Of `name` and the fields of `Terms`, those that are given; answered as `revoke` is."""
    terms = {name: value for name, value in changes.items() if name != "name"}
    checked = _checked(control, Terms(**terms))
    values = {name: getattr(checked, name) for name in terms}
    if "allow" in values:
        values["allow"] = list(checked.allow) or None
    if changes.get("name") is not None:
        values["name"] = changes["name"]
    async with control.db.transaction() as tx:
        row = await _row(tx, who, id)
        changed = await tx.keys.update(who.account, id, **values) if values else row
        if changed is None:
            raise NotFoundError(f"key {id[:80]!r} was revoked; make another.")
        await _record(control, tx, who.account, "key_changed", id, who.key)
    control.changes.notify()
    return replace(view(changed), unacknowledged=await control.controller.published())


async def revoke(control: Control, who: Principal, id: str) -> KeyView:
    """Revoked for every gateway that is connected; the answer names those that did not say so in time."""
    async with control.db.transaction() as tx:
        await _row(tx, who, id)
        if await tx.keys.revoke(who.account, id, control.clock()):
            await _record(control, tx, who.account, "key_revoked", id, who.key)
        row = await _row(tx, who, id)
    control.changes.notify()
    return replace(view(row), unacknowledged=await control.controller.published())


async def _mint(
    control: Control,
    account: str,
    name: str,
    scopes: list[str],
    by: str,
    terms: Terms,
    member: str | None = None,
) -> KeyView:
    key = new(control)
    async with control.db.transaction() as tx:
        await quotas.check_room(control, tx, account, "keys")
        if member is not None:
            await still_member(tx, account, member)
        row = await store(control, tx, account, name, scopes, key, terms, member)
        await _record(control, tx, account, "key_created", row.id, by)
    control.changes.notify()
    return replace(view(row, key.text), unacknowledged=await control.controller.published())


async def still_member(tx: Tx, account: str, id: str) -> Member:
    """Who asks, where they were not removed while they did. The account is held. Raises `NotLoggedInError`."""
    member = await tx.members.get(account, id)
    if member is None:
        raise NotLoggedInError("you are not a member of this account any more.")
    return member


async def _row(tx: Tx, who: Principal, id: str) -> ApiKey:
    row = await tx.keys.get(who.account, id)
    if row is None or not _theirs(who, row):
        raise NotFoundError(f"you have no key {id[:80]!r}.")
    return row


def _theirs(who: Principal, row: ApiKey) -> bool:
    return who.may("team") or (who.member is not None and row.created_by == who.member)


def _checked(control: Control, terms: Terms) -> Terms:
    if terms.expires_at is not None and terms.expires_at <= control.clock():
        raise InvalidRequestError(
            "expires_at is over already; it is in seconds since the epoch.", param="expires_at"
        )
    try:
        networks = tuple(dict.fromkeys(addresses.network(text) for text in terms.allow))
    except ValueError as error:
        raise InvalidRequestError(
            f"allow: {str(error)[:200]}; give addresses or CIDRs, such as 192.0.2.0/24.", param="allow"
        ) from error
    return replace(terms, allow=networks)


async def _record(control: Control, tx: Tx, account: str, kind: str, key: str, by: str) -> None:
    await tx.events.append(account, at=control.clock(), kind=kind, subject=f"key:{key}", detail={"by": by})


def view(row: ApiKey, text: str | None = None) -> KeyView:
    return KeyView(
        row.id,
        row.name,
        list(row.scopes),
        row.created_at,
        row.revoked_at,
        text,
        expires_at=row.expires_at,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        allow=list(row.allow or ()),
        spend_limit=row.spend_limit,
        created_by=row.created_by,
    )
