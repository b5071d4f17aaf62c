"""Addresses that users give and this process speaks to: which of them it may."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from kb.errors import InvalidParam

_URL_CHARS = 2000
_NAT64 = ip_network("64:ff9b::/96")


def checked_url(url: str, *, what: str, allow_private: bool, setting: str) -> str:
    """The URL, if it can be spoken to; names are looked up each time it is.

    Args:
        what: as messages call it.
        setting: what allows addresses that are not public.
    Raises:
        InvalidParam: the message says what is wrong with it.
    """
    shown = url if len(url) <= 100 else f"{url[:97]}..."
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname
    except ValueError as exc:
        raise InvalidParam(f"{what} {shown!r} cannot be read: {exc}") from exc
    if parts.scheme not in ("http", "https") or not host or not url.isascii():
        raise InvalidParam(f"{what} is {shown!r}; send one like https://example.org/path, in ASCII")
    if len(url) > _URL_CHARS or any(c <= " " or c == "\x7f" for c in url):
        raise InvalidParam(f"{what} has more than {_URL_CHARS} characters, or white space in it")
    if parts.username is not None or parts.fragment or port == 0:
        raise InvalidParam(f"{what} holds a user, a fragment or port 0; leave them out")
    if not allow_private and _is_private(host):
        raise InvalidParam(
            f"{what} leads to {host}, which is not a public address; {setting}=true allows it"
        )
    return url


def _is_private(host: str) -> bool:
    try:
        return not is_public(ip_address(host))
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it leads out of this machine and its networks, in whatever form it is written."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address.teredo is not None:
            inner = address.teredo[1]
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast
