"""The request as its client sent it: what trusted proxies say in X-Forwarded-* or in Forwarded.

Only those of --trusted-proxies are believed, and only as far as they vouch for each other: the client is the
first address, from the server outwards, that is none of them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import hdrs, web

from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.settings import Network

SCHEMES = ("http", "https")
FOR, PROTO, HOST = "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"
PREFIX = "X-Forwarded-Prefix"
BRACKETED = re.compile(r"\[(?P<address>[^\]]+)\](?::\d+)?")
A_PREFIX = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")


@dataclass(frozen=True)
class Seen:
    """`host` is unchecked, and may have a port; `vouched`: a trusted proxy has said the scheme."""

    address: str
    scheme: str
    host: str
    prefix: str = ""
    vouched: bool = False


@dataclass(frozen=True)
class _Said:
    """What proxies say, each list with the outermost first; "" where one says nothing."""

    addresses: Sequence[str]
    schemes: Sequence[str]
    hosts: Sequence[str]


SEEN = web.RequestKey("seen", Seen)


def seen_of(request: web.Request) -> Seen:
    """The request as its client sent it."""
    found = request.get(SEEN)
    if found is None:
        found = request[SEEN] = _seen(request, request.app[SERVICE].settings.trusted_proxies)
    return found


def _seen(request: web.Request, trusted: Sequence[Network]) -> Seen:
    peer, host = request.remote or "", request.headers.get(hdrs.HOST, "")
    if not _is_in(peer, trusted):
        return Seen(peer, request.scheme, host)
    said = _said(request)
    address, hops = _client(peer, said.addresses, trusted)
    scheme = _at(said.schemes, hops).lower()
    prefix = request.headers.get(PREFIX, "").strip().rstrip("/")
    return Seen(
        address,
        scheme if scheme in SCHEMES else request.scheme,
        _at(said.hosts, hops) or host,
        prefix if A_PREFIX.fullmatch(prefix) else "",
        scheme in SCHEMES,
    )


def _said(request: web.Request) -> _Said:
    """X-Forwarded-* where there is any of it, else RFC 7239's Forwarded."""
    if any(name in request.headers for name in (FOR, PROTO, HOST)):
        return _Said(_listed(request, FOR), _listed(request, PROTO), _listed(request, HOST))
    hops = request.forwarded
    addresses, schemes, hosts = ([hop.get(name, "") for hop in hops] for name in ("for", "proto", "host"))
    return _Said(addresses, schemes, hosts)


def _listed(request: web.Request, name: str) -> list[str]:
    values = ",".join(request.headers.getall(name, ())).split(",")
    return [value.strip() for value in values if value.strip()]


def _client(peer: str, addresses: Sequence[str], trusted: Sequence[Network]) -> tuple[str, int]:
    """The first address that is no trusted proxy's, and how many of those the request came through."""
    address, hops = peer, 0
    for each in reversed(addresses):
        bare = _bare(each)
        if not bare or not _is_in(address, trusted):
            break
        address, hops = bare, hops + 1
    return address, max(hops, 1)


def _at(values: Sequence[str], hops: int) -> str:
    """What the outermost trusted proxy says; proxies that add nothing leave the list shorter."""
    return values[-min(hops, len(values))] if values else ""


def _bare(text: str) -> str:
    """The address without brackets and port; "" for names, and for `unknown`."""
    bracketed = BRACKETED.fullmatch(text)
    if bracketed:
        text = bracketed["address"]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def _is_in(address: str, networks: Sequence[Network]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in networks)
