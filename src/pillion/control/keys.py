"""API keys: who calls, what they may do, and a revocation that every gateway has heard of."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pillion.control.context import Control
from pillion.control.views import KeyView, Page
from pillion.core import keys
from pillion.core.errors import InsufficientScopeError, InvalidApiKeyError, InvalidRequestError, NotFoundError
from pillion.core.names import new_id
from pillion.store.rows import ApiKey
from pillion.store.transaction import Tx


@dataclass(frozen=True)
class Principal:
    account: str
    key: str
    scopes: frozenset[str]

    def need(self, scope: str) -> Principal:
        """Itself, if the key may do this: `admin` may all, `manage` what an owner does. Raises otherwise."""
        if scope in self.scopes or "admin" in self.scopes:
            return self
        raise InsufficientScopeError(
            f"this key lacks the scope '{scope}'; it has: {', '.join(sorted(self.scopes))}. Use another key."
        )


async def authenticate(control: Control, text: str) -> Principal:
    """The account behind a key. Raises `InvalidApiKeyError`, the same for every reason."""
    key = keys.parse(text)
    row = None
    if key is not None:
        async with control.db.read() as tx:
            row = await tx.everyone.key_by_lookup(key.lookup)
    if (
        key is None
        or row is None
        or row.revoked_at is not None
        or (row.expires_at is not None and row.expires_at <= control.clock())
        or not keys.matches(control.pepper, text, row.digest)
    ):
        raise InvalidApiKeyError("the API key is not valid: malformed, unknown, revoked or expired.")
    return Principal(row.account_id, row.id, frozenset(row.scopes))


async def listing(control: Control, who: Principal) -> Page[KeyView]:
    async with control.db.read() as tx:
        return Page([_view(row) for row in await tx.keys.list(who.account)])


@dataclass(frozen=True)
class Terms:
    """What a key is limited to. `expires_at`: seconds since the epoch."""

    expires_at: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


FREE = Terms()


async def create(
    control: Control, who: Principal, name: str, scopes: list[str], terms: Terms = FREE
) -> KeyView:
    """A new key of the caller's account. Nobody hands out a scope they do not have."""
    if terms.expires_at is not None and terms.expires_at <= control.clock():
        raise InvalidRequestError(
            "expires_at is over already; it is in seconds since the epoch.", param="expires_at"
        )
    for scope in scopes:
        if scope != "inference":
            who.need(scope)
    return await _mint(control, who.account, name, scopes, by=who.key, terms=terms)


async def create_for(control: Control, who: Principal, account: str, name: str, scopes: list[str]) -> KeyView:
    """A key for any account, by the operator."""
    async with control.db.read() as tx:
        if await tx.accounts.get(account) is None:
            raise NotFoundError(f"there is no account {account[:80]!r}.")
    return await _mint(control, account, name, scopes, by=who.key)


async def mint(control: Control, account: str, name: str, scopes: list[str], terms: Terms = FREE) -> KeyView:
    """A new key of an account, stored. Its text is in the answer alone."""
    key = new(control)
    async with control.db.transaction() as tx:
        row = await store(control, tx, account, name, scopes, key, terms)
    control.changes.notify()
    return _view(row, key.text)


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
    )


async def _mint(
    control: Control, account: str, name: str, scopes: list[str], by: str, terms: Terms = FREE
) -> KeyView:
    view = await mint(control, account, name, scopes, terms)
    await _record(control, account, "key_created", view.id, by)
    behind = await control.controller.published()
    return _view_with(view, behind)


async def revoke(control: Control, who: Principal, id: str) -> KeyView:
    """Revoked for every gateway that is connected; the answer names those that did not say so in time."""
    async with control.db.transaction() as tx:
        row = await tx.keys.get(who.account, id)
        if row is None:
            raise NotFoundError(f"you have no key {id[:80]!r}.")
        await tx.keys.revoke(who.account, id, control.clock())
        row = await tx.keys.get(who.account, id)
        assert row is not None
    control.changes.notify()
    await _record(control, who.account, "key_revoked", id, who.key)
    return _view_with(_view(row), await control.controller.published())


async def _record(control: Control, account: str, kind: str, key: str, by: str) -> None:
    async with control.db.transaction() as tx:
        await tx.events.append(
            account, at=control.clock(), kind=kind, subject=f"key:{key}", detail={"by": by}
        )


def _view(row: ApiKey, text: str | None = None) -> KeyView:
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
    )


def _view_with(view: KeyView, behind: list[str]) -> KeyView:
    return replace(view, unacknowledged=behind)
