"""Keys at the gateway's door: networks, proxies, suspended accounts."""

from __future__ import annotations

import msgspec
import pytest

from pillion.core.errors import AccountSuspendedError, AddressNotAllowedError, InsufficientScopeError
from pillion.core.routing import Routes
from pillion.core.snapshot import Key
from pillion.gateway.auth import Doorkeeper
from pillion.gateway.http import Head
from tests.gateway.world import make_key, make_snapshot


def at_door(
    changes: dict[str, object],
    peer: str,
    *forwarded: str,
    proxies: tuple[str, ...] = (),
    scope: str = "inference",
) -> Key:
    """What becomes of a request with a key that has these changes; twice, as what is remembered must not matter."""
    text, (lookup, key) = make_key()
    routes = Routes(make_snapshot((lookup, msgspec.structs.replace(key, **changes))))
    head = Head(
        "POST",
        "/v1/completions",
        "",
        [("authorization", f"Bearer {text}"), *(("x-forwarded-for", value) for value in forwarded)],
    )
    door = Doorkeeper(lambda: 0.0, proxies)
    door.authorize(Routes(make_snapshot((lookup, key))), head, "inference", peer)
    return door.authorize(routes, head, scope, peer)


NETS = {"allow": ("192.0.2.0/24",)}


def test_a_key_without_networks_is_good_from_anywhere() -> None:
    assert at_door({}, "unknown").account
    assert at_door({}, "2001:db8::1").account


@pytest.mark.parametrize("peer", ["192.0.2.1", "::ffff:192.0.2.1"])
def test_a_key_is_good_from_its_networks(peer: str) -> None:
    assert at_door(NETS, peer).account


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies"),
    [
        ("192.0.3.1", [], ()),
        ("unknown", [], ()),
        ("192.0.3.1", ["192.0.2.1"], ()),
        ("192.0.3.1", ["192.0.2.1"], ("10.0.0.0/8",)),
        ("10.0.0.1", ["192.0.2.1, 192.0.3.1"], ("10.0.0.0/8",)),
    ],
)
def test_and_from_nowhere_else(peer: str, forwarded: list[str], proxies: tuple[str, ...]) -> None:
    with pytest.raises(AddressNotAllowedError):
        at_door(NETS, peer, *forwarded, proxies=proxies)


def test_behind_a_proxy_its_client_counts() -> None:
    assert at_door(NETS, "10.0.0.1", "9.9.9.9, 192.0.2.1", proxies=("10.0.0.0/8",)).account


def test_a_suspended_account_is_told_so() -> None:
    with pytest.raises(AccountSuspendedError):
        at_door({"suspended": True}, "192.0.2.1")


def test_scopes() -> None:
    with pytest.raises(InsufficientScopeError, match="scope 'manage'"):
        at_door({}, "192.0.2.1", scope="manage")


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "may"),
    [
        ("127.0.0.1", [], (), True),
        ("192.0.2.1", [], (), False),
        ("unknown", [], (), False),
        ("127.0.0.1", ["127.0.0.1"], (), False),
        ("127.0.0.1", ["192.0.2.1"], ("127.0.0.1/32",), False),
        ("127.0.0.1", ["192.0.2.1, 127.0.0.5"], ("127.0.0.1/32",), True),
    ],
)
def test_who_sees_metrics_without_a_key(
    peer: str, forwarded: list[str], proxies: tuple[str, ...], may: bool
) -> None:
    head = Head("GET", "/metrics", "", [("x-forwarded-for", value) for value in forwarded])
    assert Doorkeeper(lambda: 0.0, proxies, ("127.0.0.0/8",)).may_watch(head, peer) is may


def test_what_is_written_at_length_around_a_key_is_not_kept() -> None:
    text, entry = make_key()
    door, routes = Doorkeeper(lambda: 0.0), Routes(make_snapshot(entry))
    for number in range(100):
        head = Head("POST", "/", "", [("authorization", f"Bearer {' ' * (10_000 + number)}{text}")])
        assert door.authorize(routes, head, "inference", "::1").account
    assert sum(map(len, [*door._seen, *door._known])) < 100_000
