"""The table of who may do what, whole."""

from __future__ import annotations

from itertools import combinations
from typing import get_args

import pytest

from pillion.core import keys
from pillion.core.permissions import (
    ACTIONS,
    BY_ROLE,
    BY_SCOPE,
    OF_MEMBERS,
    Action,
    Role,
    actions,
    may,
    may_give,
    refusal,
)

SCOPE_SETS = [set(s) for n in range(4) for s in combinations(keys.SCOPES, n)]
MAY: dict[tuple[str, Role | None], str] = {
    ("inference", None): "infer",
    ("manage", None): "read manage team",
    ("admin", None): "infer read manage team operate",
    ("inference", "member"): "infer",
    ("manage", "member"): "read manage",
    ("admin", "member"): "infer read manage",
    ("inference", "owner"): "infer",
    ("manage", "owner"): "read manage team",
    ("admin", "owner"): "infer read manage team operate",
}


@pytest.mark.parametrize(("scope", "role"), MAY)
@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_each_action(scope: str, role: Role | None, action: Action) -> None:
    assert may(action, [scope], role) == (action in MAY[scope, role].split())


def test_every_scope_role_and_action_is_in_the_table() -> None:
    assert set(BY_SCOPE) == set(keys.SCOPES)
    assert set(BY_ROLE) == set(get_args(Role))
    assert set(get_args(Action)) == ACTIONS
    assert {scope for scope, _ in MAY} == set(keys.SCOPES)


@pytest.mark.parametrize("scopes", SCOPE_SETS)
@pytest.mark.parametrize("to", SCOPE_SETS)
def test_nobody_gives_more_than_they_have(scopes: set[str], to: set[str]) -> None:
    assert may_give(scopes, to) == (
        "admin" in scopes or ("admin" not in to and ("manage" in scopes or "manage" not in to))
    )
    if may_give(scopes, to):
        for role in (None, *get_args(Role)):
            assert actions(to, role) <= actions(scopes, role) | {"infer"}


def test_nobody_operates_with_a_password() -> None:
    for role in get_args(Role):
        assert not may("operate", OF_MEMBERS, role)


def test_refusals_say_what_would_help() -> None:
    assert "scope 'admin'" in refusal("operate", ["manage"])
    assert "it has: inference" in refusal("manage", ["inference"])
    assert "an owner may" in refusal("team", ["manage"], "member")
    assert "scope 'manage'" in refusal("team", ["inference"], "member")
