"""Who is calling, and whether they may."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence

from pillion.core import addresses, keys
from pillion.core.errors import (
    InsufficientScopeError,
    InvalidApiKeyError,
    account_suspended,
    address_not_allowed,
)
from pillion.core.routing import Routes
from pillion.core.snapshot import Key
from pillion.gateway.http import Head

MAX_SEEN = 20_000
MAX_TEXT = 256  # of what is kept: around a key there may be any number of blanks


class Doorkeeper:
    """Checks keys against the snapshot of each request: once for each snapshot. Of a key that was right before the digest
    is kept, so that it is not made anew.

    `proxies`: CIDRs of those whose `x-forwarded-for` is believed. `watchers`: of those who see metrics without a key.
    """

    def __init__(
        self, clock: Callable[[], float], proxies: Sequence[str] = (), watchers: Sequence[str] = ()
    ) -> None:
        self._clock = clock
        self._proxies = tuple(proxies)
        self._watchers = tuple(watchers)
        self._pepper = b""
        self._seen: dict[str, tuple[str, str]] = {}
        self._routes: Routes | None = None
        self._known: dict[str, Key] = {}

    def client(self, head: Head, peer: str) -> str:
        """The address of who sent it, `peer` being that of who is connected."""
        return addresses.client(peer, head.all("x-forwarded-for"), self._proxies) if self._proxies else peer

    def may_watch(self, head: Head, peer: str) -> bool:
        """Whether it was sent from where metrics are seen without a key. A proxy nobody knows of hides from where."""
        hidden = not self._proxies and head.first("x-forwarded-for") is not None
        return not hidden and addresses.within(self.client(head, peer), self._watchers)

    def authorize(self, routes: Routes, head: Head, scope: str, peer: str) -> Key:
        """The key in `Authorization: Bearer`, which must have `scope`. Raises `InvalidApiKeyError`,
        `AddressNotAllowedError`, `AccountSuspendedError` or `InsufficientScopeError`.
        """
        given = head.all("authorization")
        if len(given) != 1:
            raise InvalidApiKeyError("Send one API key: Authorization: Bearer pil_….")
        if routes is not self._routes:
            self._routes, self._known = routes, {}
        known = self._known.get(given[0]) or self._look_up(routes, given[0])
        if known.expires_at is not None and self._clock() >= known.expires_at:
            raise InvalidApiKeyError("The API key is not valid: it has expired.")
        if known.allow and not addresses.within(client := self.client(head, peer), known.allow):
            raise address_not_allowed(client)
        if known.suspended:
            raise account_suspended()
        if scope not in known.scopes:
            raise InsufficientScopeError(
                f"The API key lacks the scope '{scope}'; it has: {', '.join(known.scopes) or 'none'}."
            )
        return known

    def _look_up(self, routes: Routes, given: str) -> Key:
        """Whose it is in this snapshot. Raises `InvalidApiKeyError`."""
        seen = self._seen.get(given) if routes.pepper == self._pepper else None
        lookup, digest = seen or _read(given, routes.pepper)
        found = routes.key(lookup)
        if found is None or not hmac.compare_digest(digest, found.digest):
            raise InvalidApiKeyError("The API key is not valid: it is unknown here or was revoked.")
        if len(given) > MAX_TEXT:
            return found
        if seen is None:
            self._remember(given, lookup, digest, routes.pepper)
        if len(self._known) >= MAX_SEEN:
            self._known.clear()
        self._known[given] = found
        return found

    def _remember(self, given: str, lookup: str, digest: str, pepper: bytes) -> None:
        if pepper != self._pepper or len(self._seen) >= MAX_SEEN:
            self._seen.clear()
            self._pepper = pepper
        self._seen[given] = lookup, digest


def _read(given: str, pepper: bytes) -> tuple[str, str]:
    """The key's lookup id and digest."""
    scheme, _, text = given.partition(" ")
    parsed = keys.parse(text.strip()) if scheme.lower() == "bearer" else None
    if parsed is None:
        raise InvalidApiKeyError(
            "The API key is malformed. It begins with pil_; check that it was copied whole."
        )
    return parsed.lookup, keys.digest(pepper, parsed.text)
