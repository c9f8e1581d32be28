"""Addresses that servers listen at."""

from __future__ import annotations

from ipaddress import ip_address


def is_local(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def reachable(host: str) -> str:
    """How a URL names a listening address; one that means every address is reached as localhost."""
    try:
        address = ip_address(host)
    except ValueError:  # a name
        return host
    if address.is_unspecified:
        return "localhost"
    return f"[{address}]" if address.version == 6 else str(address)
