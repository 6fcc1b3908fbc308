"""The people of the account, and invites to it."""

from __future__ import annotations

from collections.abc import Iterator

from pillion.sdk.transport import Transport, segment
from pillion.sdk.types import Invite, Member, read


class Members:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> Iterator[Member]:
        return self._transport.pages(Member, "/v1/members", limit=limit)

    def update(self, member: str, *, role: str | None = None, name: str | None = None) -> Member:
        """`role`: owner or member. The last owner stays owner."""
        changes = {key: value for key, value in (("role", role), ("name", name)) if value is not None}
        return read(Member, self._transport.send("PATCH", f"/v1/members/{segment(member)}", json=changes))

    def remove(self, member: str) -> Member:
        """With the keys that they made; `unacknowledged` names gateways that have not said they refuse those."""
        return read(Member, self._transport.send("DELETE", f"/v1/members/{segment(member)}"))


class Invites:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> Iterator[Invite]:
        """Those that nobody has accepted."""
        return self._transport.pages(Invite, "/v1/invites", limit=limit)

    def create(self, email: str, *, role: str = "member") -> Invite:
        """Valid once, for 14 days. Its `token` is never shown again; nothing is mailed."""
        wanted = {"email": email, "role": role}
        return read(Invite, self._transport.send("POST", "/v1/invites", json=wanted))

    def revoke(self, invite: str) -> None:
        self._transport.send("DELETE", f"/v1/invites/{segment(invite)}")
