"""Whose page a browser's request comes from: its Host, Origin and Sec-Fetch-Site, read strictly.

Without a key, and with the password that a browser sends by itself, these are all that tells our own page
from another site's. A proxy may speak TLS for us, so schemes are compared only where a trusted one says which
it was; the browser says in Sec-Fetch-Site whether a page of that origin is really ours.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from aiohttp import hdrs, web

from gguf_imagegen.api.proxies import seen_of
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import Forbidden

AUTHORITY = re.compile(
    r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+?)\.?)(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE
)
PORTS = {"http": 80, "https": 443}
OTHERS = ("cross-site", "same-site")
"""What Sec-Fetch-Site says of other origins' pages; our own are `same-origin`, the user's own acts `none`."""
READS = (hdrs.METH_GET, hdrs.METH_HEAD)


@dataclass(frozen=True)
class Authority:
    """A host in lower case, without brackets or a dot at its end; `port` None where none is said."""

    host: str
    port: int | None


@dataclass(frozen=True)
class Origin:
    """The scheme and place of a page; `port` is the scheme's own where none is said."""

    scheme: str
    host: str
    port: int | None


def authority(text: str) -> Authority | None:
    """`HOST[:PORT]`; None if it is anything else or more, like a user name or a bracket in a name."""
    found = AUTHORITY.fullmatch(text)
    if found is None:
        return None
    port = int(found["port"]) if found["port"] else None
    if found["name"]:
        return Authority(found["name"].lower(), port)
    try:
        return Authority(str(ipaddress.IPv6Address(found["v6"])), port)
    except ValueError:
        return None


def origin(text: str) -> Origin | None:
    """`SCHEME://HOST[:PORT]`; None if it is none, as `null` is."""
    scheme, _, place = text.partition("://")
    found = authority(place)
    if found is None:
        return None
    return Origin(scheme.lower(), found.host, found.port or PORTS.get(scheme.lower()))


def cors_origin(request: web.Request, settings: Settings) -> str:
    """The request's Origin if --cors-origins allows it, else nothing."""
    given = request.headers.getall(hdrs.ORIGIN, [""])
    if len(given) > 1 or not given[0]:
        return ""
    page = origin(given[0])
    listed = [origin(each.rstrip("/")) for each in settings.cors_origins]
    allowed = {"*", given[0]} & {*settings.cors_origins} or (page is not None and page in listed)
    return given[0] if allowed else ""


def check_host(request: web.Request, settings: Settings) -> None:
    """Refuse names that are not ours: a page that rebinds its name to 127.0.0.1 still sends its own name.

    That a proxy says another one does not make up for it: the page may have sent what the proxy passes on.
    """
    given = request.headers.getall(hdrs.HOST, [""])
    forwarded = seen_of(request).host
    if len(given) > 1 or not (_is_served(given[0], settings) and _is_served(forwarded, settings)):
        host = ", ".join(dict.fromkeys((*given, forwarded)))[:100]
        raise Forbidden(f"host {host!r} is not served here; allow it with --allowed-hosts or set a key")


def _is_served(host: str, settings: Settings) -> bool:
    found, public = authority(host), _public(settings)
    names = ("localhost", settings.host, *settings.allowed_hosts, public.host if public else "")
    ours = {each.host for name in names if (each := authority(name))}
    return found is not None and (found.host in ours or _is_address(found.host))


def check_origin(request: web.Request, settings: Settings) -> None:
    """Refuse other sites' pages: without a key, a browser on this machine could be made to call us."""
    given = ", ".join(request.headers.getall(hdrs.ORIGIN, []))
    foreign = request.headers.get("Sec-Fetch-Site", "") in OTHERS
    if cors_origin(request, settings):
        return
    if given and (foreign or not _is_own(given, request, settings)):
        raise Forbidden(f"origin {given[:100]!r} is not allowed; allow it with --cors-origins")
    if foreign and not given and request.method not in READS and "*" not in settings.cors_origins:
        raise Forbidden("a page of another site may not do this; allow its origin with --cors-origins")


def _is_own(given: str, request: web.Request, settings: Settings) -> bool:
    """Whether this origin is the address that the request was sent to."""
    page, public, seen = origin(given), _public(settings), seen_of(request)
    here = authority(seen.host)
    if page is None or here is None or page.scheme not in PORTS:
        return False
    if seen.vouched and page.scheme != seen.scheme:
        return False
    if public and (here.host, here.port or PORTS.get(public.scheme)) == (public.host, public.port):
        return page == public
    return page == public or (page.host, page.port) == (here.host, here.port or PORTS[page.scheme])


def _public(settings: Settings) -> Origin | None:
    """The origin of --public-url."""
    scheme, separator, rest = (settings.public_url or "").partition("://")
    return origin(scheme + separator + rest.partition("/")[0])


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
