"""Who may do what: scopes of keys and roles of members, against actions. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

Role = Literal["owner", "member"]
Scope = Literal["inference", "manage", "admin"]
# `infer`: call models. `read`, `manage`: what the account owns. `team`: its members, their roles and invites, and all
# of its keys. `operate`: every account.
Action = Literal["infer", "read", "manage", "team", "operate"]

ACTIONS: frozenset[Action] = frozenset(["infer", "read", "manage", "team", "operate"])
BY_SCOPE: Mapping[str, frozenset[Action]] = {
    "inference": frozenset(["infer"]),
    "manage": frozenset(["read", "manage", "team"]),
    "admin": ACTIONS,
}
BY_ROLE: Mapping[Role, frozenset[Action]] = {
    "owner": ACTIONS,
    "member": frozenset(["infer", "read", "manage"]),
}
# What somebody who came with a password has: an account is not operated that way.
OF_MEMBERS: tuple[Scope, ...] = ("inference", "manage")
_GIVES: Mapping[Action, Scope] = {
    "infer": "inference",
    "read": "manage",
    "manage": "manage",
    "team": "manage",
    "operate": "admin",
}


def actions(scopes: Collection[str], role: Role | None = None) -> frozenset[Action]:
    """What a key with these scopes may do; where a member made it, or is the one who asks, no more than their role may."""
    given: frozenset[Action] = frozenset().union(*(BY_SCOPE[scope] for scope in scopes))
    return given if role is None else given & BY_ROLE[role]


def may(action: Action, scopes: Collection[str], role: Role | None = None) -> bool:
    return action in actions(scopes, role)


def may_give(scopes: Collection[str], to: Collection[str]) -> bool:
    """Whether who has `scopes` may make a key with the scopes `to`: never more than they have, but inference is free.

    What a member makes keeps to the member's role (`actions`), so the role takes nothing away here.
    """
    return actions(to) <= actions(scopes) | {"infer"}


def refusal(action: Action, scopes: Collection[str], role: Role | None = None) -> str:
    """Why not, and what would help."""
    if may(action, scopes):
        return f"a {role} of the account may not do this; an owner may."
    return f"this key lacks the scope '{_GIVES[action]}'; it has: {', '.join(sorted(scopes)) or 'none'}. Use another key."
