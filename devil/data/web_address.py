"""Web addresses → addresses of machines to connect to, private ones refused.

A list of addresses is written by others, and a worker stands inside somebody's network: an entry
(or a redirect, or a name that resolves so) must not make it read from that network. The address
that was checked is the one that is connected to; a second look-up could give another one.
"""

import asyncio
import ipaddress
import socket

import httpx

from devil.errors import AddressError

SHOWN = 200
"""Characters of an address in a message."""
LAST_PORT = 65_535


def parsed_address(text: str) -> httpx.URL:
    """An address of the web.

    Raises:
        AddressError: it is none, of another scheme than http and https, or of no port that exists.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise AddressError(f"{text[:SHOWN]!r} is no web address ({error})") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise AddressError(f"{text[:SHOWN]!r} is no web address; allowed: http:// and https://")
    if url.port is not None and not 1 <= url.port <= LAST_PORT:
        raise AddressError(f"{text[:SHOWN]!r} has the port {url.port}; allowed: 1 to {LAST_PORT}")
    return url


async def machine_addresses(url: httpx.URL, *, allow_private: bool) -> list[str]:
    """IP addresses of the host that may be connected to; IPv4 first, never empty.

    Raises:
        AddressError: there are private ones alone, or the name cannot be one.
        socket.gaierror: the name is unknown, or name servers do not answer.
    """
    loop = asyncio.get_running_loop()
    host = url.raw_host.decode("ascii")
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise AddressError(f"{host[:SHOWN]!r} is no name of a host ({error})") from error
    addresses = sorted(dict.fromkeys(str(entry[4][0]) for entry in found), key=_is_v6)
    allowed = [address for address in addresses if allow_private or is_public(address)]
    if not allowed:
        raise AddressError(f"{host} is at {addresses[0]}, which is no public address")
    return allowed


def _is_v6(address: str) -> bool:
    return ":" in address


def is_public(address: str) -> bool:
    """Whether an IP address is of the public net, also where IPv6 wraps IPv4 addresses."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour
        if wrapped is not None:
            return is_public(str(wrapped))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)
