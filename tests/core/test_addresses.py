"""Networks of keys, and clients behind proxies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.core.addresses import client, network, within

PROXIES = ("10.0.0.0/8", "::1/128")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("192.0.2.7", "192.0.2.7/32"),
        (" 10.1.0.0/16 ", "10.1.0.0/16"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_networks(text: str, kept: str) -> None:
    assert network(text) == kept


@pytest.mark.parametrize(
    "text", ["", "x", "10.1.2.3/16", "10.0.0.0/33", "1.2.3", "10.0.0.0/8,::1", "::1%eth0/12x"]
)
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        network(text)


@pytest.mark.parametrize(
    ("address", "networks", "inside"),
    [
        ("192.0.2.7", ["192.0.2.0/24"], True),
        ("192.0.3.7", ["192.0.2.0/24"], False),
        ("192.0.3.7", ["192.0.2.0/24", "192.0.3.7/32"], True),
        ("::ffff:192.0.2.7", ["192.0.2.0/24"], True),
        ("2001:db8::7", ["192.0.2.0/24", "2001:db8::/32"], True),
        ("2001:db8::7", ["0.0.0.0/0"], False),
        ("unknown", ["0.0.0.0/0", "::/0"], False),
        ("", ["0.0.0.0/0", "::/0"], False),
        ("192.0.2.7", [], False),
    ],
)
def test_within(address: str, networks: list[str], inside: bool) -> None:
    assert within(address, networks) is inside


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "found"),
    [
        ("192.0.2.7", [], PROXIES, "192.0.2.7"),
        ("192.0.2.7", ["1.1.1.1"], PROXIES, "192.0.2.7"),  # no proxy of ours: a claim
        ("10.0.0.1", ["192.0.2.7"], PROXIES, "192.0.2.7"),
        ("10.0.0.1", ["1.1.1.1, 192.0.2.7"], PROXIES, "192.0.2.7"),
        ("10.0.0.1", ["1.1.1.1", "192.0.2.7, 10.2.0.1"], PROXIES, "192.0.2.7"),
        ("10.0.0.1", ["10.3.0.1"], PROXIES, "10.3.0.1"),
        ("10.0.0.1", ["192.0.2.7, nonsense"], PROXIES, "10.0.0.1"),
        ("10.0.0.1", [""], PROXIES, "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.7"], (), "10.0.0.1"),
    ],
)
def test_clients(peer: str, forwarded: list[str], trusted: tuple[str, ...], found: str) -> None:
    assert client(peer, forwarded, trusted) == found


@given(st.lists(st.text(max_size=20), max_size=4), st.ip_addresses())
def test_a_client_that_is_no_proxy_cannot_say_where_it_is(claims: list[str], address: object) -> None:
    peer = str(address)
    if not within(peer, PROXIES):
        assert client(peer, claims, PROXIES) == peer
        assert client("10.0.0.1", [*claims, peer], PROXIES) == peer
