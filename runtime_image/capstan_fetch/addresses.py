"""Which IP addresses may be connected to. Pure.

Public ones; with permission private ones; never those at which clouds keep the credentials of a machine. The surprising
idea: an address is judged after it was resolved, at the moment of the connection, so it does not matter how a host was
spelt or what a name server answered a second time.
"""

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

# Metadata services outside the link-local ranges: AWS over IPv6, Alibaba, Oracle, Azure's wire server.
_METADATA: Final = frozenset(
    map(ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")),
)
_NAT64: Final = (IPv6Network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))


def why_not(text: str, *, allow_private: bool) -> str | None:
    """The reason why nothing may be sent to the address, None when it may."""
    address = _inner(ip_address(text.partition("%")[0]))
    if address in _METADATA or address.is_link_local:
        return f"{address} is where machines keep their metadata"
    if address.is_multicast or address.is_unspecified or (address.is_reserved and not address.is_loopback):
        return f"{address} is no server's address"
    if not address.is_global and not allow_private:
        return f"{address} is a private address"
    return None


def guarded_socket(
    address_info: tuple[int, int, int, str, tuple[object, ...]], *, allow_private: bool
) -> socket.socket:
    """A socket for a connection to the address. Raises `PermissionError` when there must be none."""
    family, kind, protocol, _, address = address_info
    if reason := why_not(str(address[0]), allow_private=allow_private):
        # A plain errno: the libraries above keep that of an error, not its class.
        raise PermissionError(13, reason)
    return socket.socket(family, kind, protocol)


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, where it stands for one."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    # The last 32 bits: the translator's own prefix, and the deprecated compatible form.
    if any(address in network for network in _NAT64) or (int(address) >> 32 == 0 and int(address) > 1):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
