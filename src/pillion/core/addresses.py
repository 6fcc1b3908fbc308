"""Where a client is: its address behind proxies, and whether that is in one of a key's networks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def network(text: str) -> str:
    """A CIDR or a single address, as it is kept: `10.1.0.0/16`, `192.0.2.7/32`. Raises `ValueError`."""
    return str(ip_network(text.strip()))


def within(address: str, networks: Sequence[str]) -> bool:
    """Whether the address is in one of them. What is no address (a Unix socket's) is in none."""
    parsed = _address(address)
    return parsed is not None and any(parsed in _network(each) for each in networks)


def client(peer: str, forwarded: Sequence[str], trusted: Sequence[str]) -> str:
    """The client's address. `forwarded`: values of `x-forwarded-for`, which say what trusted proxies saw.

    The nearest that is no trusted proxy is the client; what it claims itself counts for nothing.
    """
    if not forwarded or not trusted:
        return peer
    chain = [hop.strip() for value in forwarded for hop in value.split(",")]
    nearest = peer
    while chain and within(nearest, trusted):
        hop = chain.pop()
        if _address(hop) is None:
            break
        nearest = hop
    return nearest


@lru_cache(maxsize=4096)
def _network(text: str) -> Network:
    return ip_network(text)


@lru_cache(maxsize=4096)
def _address(text: str) -> Address | None:
    try:
        found = ip_address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found
