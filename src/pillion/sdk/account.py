"""The account behind the key: its API keys, its usage; and for the operator, all accounts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pillion.sdk import streams
from pillion.sdk.billing import AdminCredits, AdminPrices
from pillion.sdk.transport import Transport, segment
from pillion.sdk.types import Account, Gateway, Invite, Key, UsageEvent, read


class Keys:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> Iterator[Key]:
        return self._transport.pages(Key, "/v1/keys", limit=limit)

    def create(
        self,
        name: str,
        *,
        scopes: Sequence[str] | None = None,
        expires_at: float | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        allow: Sequence[str] | None = None,
        spend_limit: int | None = None,
    ) -> Key:
        """A new key. Its text, in `key`, is never shown again. `expires_at`: seconds since the epoch. `allow`: addresses
        and CIDRs it may be used from. `spend_limit`: 1e-6 of the currency per calendar month.
        """
        terms = {
            "scopes": None if scopes is None else [*scopes],
            "expires_at": expires_at,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "allow": None if allow is None else [*allow],
            "spend_limit": spend_limit,
        }
        wanted = {"name": name, **{term: value for term, value in terms.items() if value is not None}}
        return read(Key, self._transport.send("POST", "/v1/keys", json=wanted))

    def get(self, key: str) -> Key:
        return read(Key, self._transport.get(f"/v1/keys/{segment(key)}"))

    def update(self, key: str, **changes: Any) -> Key:
        """Of `name` and what `create` takes but `scopes`; None takes a limit away. Answered as `revoke` is."""
        return read(Key, self._transport.send("PATCH", f"/v1/keys/{segment(key)}", json=changes))

    def revoke(self, key: str) -> Key:
        """Answered when the gateways refuse the key; `unacknowledged` names those that have not said so."""
        return read(Key, self._transport.send("DELETE", f"/v1/keys/{segment(key)}"))


class OwnAccount:
    """The account of the client's key."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self) -> Account:
        return read(Account, self._transport.get("/v1/account"))

    def set_hf_token(self, token: str) -> dict[str, Any]:
        """The Hugging Face token that opens private repos. It is stored encrypted and never given back."""
        return self._transport.send("PUT", "/v1/account/hf-token", json={"token": token}) or {}

    def delete_hf_token(self) -> dict[str, Any]:
        return self._transport.send("DELETE", "/v1/account/hf-token") or {}


class Usage:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def summary(self, *, window: str = "24h", group_by: str = "model") -> dict[str, Any]:
        """`window`: 24h, 7d, 30d, month. `group_by`: model, adapter, key, day."""
        query = {"window": window, "group_by": group_by}
        found: dict[str, Any] = self._transport.get("/v1/usage/summary", query)
        return found

    def events(
        self,
        *,
        adapter_id: str | None = None,
        key_id: str | None = None,
        after: str | int | None = None,
        limit: int | None = None,
    ) -> Iterator[UsageEvent]:
        """One for each request, oldest first; `after` is the id of the last one that is known."""
        query = _given(adapter_id=adapter_id, key_id=key_id, after=after)
        return self._transport.pages(UsageEvent, "/v1/usage/events", query, limit=limit)

    def csv(
        self, *, adapter_id: str | None = None, key_id: str | None = None, after: str | int | None = None
    ) -> Iterator[str]:
        """The same as lines of CSV, the first with the columns' names."""
        query = _given(adapter_id=adapter_id, key_id=key_id, after=after, format="csv")
        with self._transport.stream("GET", "/v1/usage/events", params=query, timeout=60.0) as response:
            yield from streams.lines(response)

    def snapshot(self) -> dict[str, Any]:
        """The month to date: by model, by day, and the share that went through adapters."""
        found: dict[str, Any] = self._transport.get("/v1/billing/snapshot")
        return found


class AdminAccounts:
    """All accounts, for a key with the scope `admin`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> Iterator[Account]:
        return self._transport.pages(Account, "/v1/admin/accounts", limit=limit)

    def create(self, name: str, *, tier: str | None = None) -> Account:
        wanted = {"name": name} if tier is None else {"name": name, "tier": tier}
        return read(Account, self._transport.send("POST", "/v1/admin/accounts", json=wanted))

    def get(self, account: str) -> Account:
        return read(Account, self._transport.get(f"/v1/admin/accounts/{segment(account)}"))

    def update(self, account: str, **changes: Any) -> Account:
        """Of `name`, `tier`, `local_only`, `suspended`. Suspended, its calls are refused; what runs of it runs on."""
        answer = self._transport.send("PATCH", f"/v1/admin/accounts/{segment(account)}", json=changes)
        return read(Account, answer)

    def delete(self, account: str) -> None:
        """Refused while anything of it runs. What it used and paid stays on the books."""
        self._transport.send("DELETE", f"/v1/admin/accounts/{segment(account)}")

    def invite(self, account: str, email: str, *, role: str = "owner") -> Invite:
        """For its first owner, or one who is locked out."""
        path = f"/v1/admin/accounts/{segment(account)}/invites"
        return read(Invite, self._transport.send("POST", path, json={"email": email, "role": role}))

    def create_key(self, account: str, name: str, *, scopes: Sequence[str] | None = None) -> Key:
        wanted: dict[str, Any] = {"name": name}
        if scopes is not None:
            wanted["scopes"] = [*scopes]
        return read(
            Key, self._transport.send("POST", f"/v1/admin/accounts/{segment(account)}/keys", json=wanted)
        )


class AdminGateways:
    """Gateways that join control by a one-time token, for a key with the scope `admin`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> Iterator[Gateway]:
        return self._transport.pages(Gateway, "/v1/admin/gateways", limit=limit)

    def add(self, name: str = "") -> Gateway:
        """A token by which one gateway joins, once; it is never given again."""
        return read(Gateway, self._transport.send("POST", "/v1/admin/gateways", json={"name": name}))

    def revoke(self, gateway: str) -> None:
        self._transport.send("DELETE", f"/v1/admin/gateways/{segment(gateway)}")


class Admin:
    def __init__(self, transport: Transport) -> None:
        self.accounts = AdminAccounts(transport)
        self.gateways = AdminGateways(transport)
        self.prices = AdminPrices(transport)
        self.credits = AdminCredits(transport)


def _given(**query: Any) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}
