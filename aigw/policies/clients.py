"""Whom a request came from: the socket's address, or what a proxy that is trusted says of it.

`X-Forwarded-For` is read from its end: each proxy adds the address that spoke to it, so that only what trusted ones
added can be believed. The first address that is not trusted is the client's, whatever stands before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from aigw.config.upstreams import remember
from aigw.wire.fields import line_name

_HEADER: Final = b"x-forwarded-for"


class Proxies:
    """The networks of `trusted_proxies`."""

    __slots__ = ("_known", "_networks")

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = [ip_network(network) for network in networks]
        self._known: dict[str, bool] = {}

    def trust(self, address: str) -> bool:
        if not self._networks:
            return False
        known = self._known.get(address)
        if known is None:
            try:
                found = ip_address(address)
            except ValueError:  # a unix socket's
                known = False
            else:
                known = any(found in network for network in self._networks)
            remember(self._known, address, known)
        return known

    def client(self, peer: str, lines: Iterable[bytes]) -> str:
        """Whom the request came from, that a trusted `peer` sent with these lines in its head.

        What is no address ends the search: the proxy that passed it on is taken for the client.
        """
        said = b",".join([line.partition(b":")[2] for line in lines if line_name(line) == _HEADER])
        client = peer
        for text in reversed(said.split(b",")) if said else ():
            found = _address(text.strip().decode("latin-1"))
            if found is None:
                break
            client = found
            if not self.trust(client):
                break
        return client


def subject_of(address: str) -> str:
    """What of an address one client has: of IPv6 the /64."""
    if ":" not in address:
        return address
    return str(ip_network((address.partition("%")[0], 64), strict=False))


def plain(address: str) -> str:
    """An address as it is known everywhere: an IPv4 client of a socket for both is one of IPv4."""
    return address.removeprefix("::ffff:") if address.startswith("::ffff:") and "." in address else address


def _address(text: str) -> str | None:
    """An address in normal form; some proxies write its port behind it."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return str(found)
