"""Permission to load an adapter's version on demand: signed by control, carried by gateways, checked by agents (SPEC §4).

A grant cannot list the hundred thousand adapters that a replica may be asked for, so what allows a load travels with the
request for it. Gateways cannot make one: they do not have the key.
"""

from __future__ import annotations

import hmac

import msgspec

from pillion.core.errors import InsufficientScopeError
from pillion.core.names import engine_name
from pillion.core.replica import GrantEntry

_MAC = 32


class PermitRefusedError(InsufficientScopeError):
    """Not signed by control, or not for this replica. The same permit is refused again."""


class Permit(msgspec.Struct, frozen=True, array_like=True):
    """One version of an account's adapter, for replicas of `base` in `region` (None: any).

    From `expires_at` (seconds since the epoch) on it allows nothing. `weight` and `reserved` are its account's tier's.
    """

    account: str
    base: str
    region: str | None
    adapter_id: str
    digest: str
    rank: int
    size_bytes: int
    expires_at: float | None = None
    weight: int = 1
    reserved: int = 1

    @property
    def entry(self) -> GrantEntry:
        """What its replica may hold, and may evict again."""
        return GrantEntry(
            engine_name(self.adapter_id, self.digest),
            self.adapter_id,
            self.digest,
            self.rank,
            self.size_bytes,
            hold="loaded",
            expires_at=self.expires_at,
            account=self.account,
            weight=self.weight,
            reserved=self.reserved,
        )


class Terms(msgspec.Struct, frozen=True):
    """For what a replica takes permits: `account` None is a pool, which serves all accounts."""

    account: str | None
    base: str
    region: str
    max_rank: int


def sign(permit: Permit, key: bytes) -> bytes:
    body = msgspec.msgpack.encode(permit)
    return hmac.digest(key, body, "sha256") + body


def opened(signed: bytes, key: bytes) -> Permit:
    """Raises `PermitRefusedError` where `key` did not sign it. No permit is good under an empty key."""
    mac, body = signed[:_MAC], signed[_MAC:]
    if not key or not hmac.compare_digest(mac, hmac.digest(key, body, "sha256")):
        raise PermitRefusedError("this permit was not signed by this replica's control.")
    try:
        return msgspec.msgpack.decode(body, type=Permit)
    except msgspec.MsgspecError as error:
        raise PermitRefusedError(f"this permit is of another kind: {error}") from error


def check(permit: Permit, terms: Terms, now: float) -> None:
    """Raises `PermitRefusedError` where a replica of these terms must not load it at `now`."""
    reasons = []
    if terms.account not in (None, permit.account):
        reasons.append("it is another account's")
    if permit.base != terms.base:
        reasons.append(f"it rides on {permit.base!r}, this replica serves {terms.base!r}")
    if permit.region not in (None, terms.region):
        reasons.append(f"it is bound to region {permit.region!r}, this is {terms.region!r}")
    if permit.rank > terms.max_rank:
        reasons.append(f"its rank is {permit.rank}, this replica takes up to {terms.max_rank}")
    if permit.expires_at is not None and permit.expires_at <= now:
        reasons.append("its time to live is over")
    if reasons:
        raise PermitRefusedError(f"{permit.adapter_id} may not be loaded here: {'; '.join(reasons)}.")
