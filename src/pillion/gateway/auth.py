"""Who is calling, and whether they may."""

from __future__ import annotations

from pillion.core import keys
from pillion.core.errors import InsufficientScopeError, InvalidApiKeyError
from pillion.core.routing import Routes
from pillion.core.snapshot import Key
from pillion.gateway.http import Head


def authorize(routes: Routes, head: Head, scope: str) -> Key:
    """The key in `Authorization: Bearer`, which must have `scope`. Raises `InvalidApiKeyError` or
    `InsufficientScopeError`.
    """
    given = head.all("authorization")
    if len(given) != 1:
        raise InvalidApiKeyError("Send one API key: Authorization: Bearer pil_….")
    scheme, _, text = given[0].partition(" ")
    parsed = keys.parse(text.strip()) if scheme.lower() == "bearer" else None
    if parsed is None:
        raise InvalidApiKeyError(
            "The API key is malformed. It begins with pil_; check that it was copied whole."
        )
    known = routes.key(parsed.lookup)
    if known is None or not keys.matches(routes.pepper, parsed.text, known.digest):
        raise InvalidApiKeyError("The API key is not valid: it is unknown here or was revoked.")
    if scope not in known.scopes:
        raise InsufficientScopeError(
            f"The API key lacks the scope '{scope}'; it has: {', '.join(known.scopes) or 'none'}."
        )
    return known
