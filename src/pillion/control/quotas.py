"""How much of something an account may have: the caps of its tier."""

from __future__ import annotations

from collections.abc import Mapping

from pillion.control.context import Control
from pillion.core.errors import InsufficientQuotaError
from pillion.store.accounts import Held
from pillion.store.transaction import Tx

_ROOM: Mapping[Held, str] = {
    "adapters": "adapters; delete one first",
    "keys": "keys; revoke one first",
    "members": "members; remove one first",
    "invites": "invites that wait; withdraw one first",
    "instances": "instances that run; stop one first",
    "models": "registered models; delete one first",
}


async def check_room(control: Control, tx: Tx, account: str, what: Held) -> None:
    """Holds the account until the transaction ends, so that one more fits. Raises `InsufficientQuotaError`."""
    tier = (await tx.accounts.lock(account)).tier
    cap: int = getattr(control.settings.caps[tier], "members" if what == "invites" else what)
    if await tx.accounts.has(account, what) >= cap:
        raise InsufficientQuotaError(f"tier {tier!r} has room for {cap} {_ROOM[what]}.")
