"""The web page: the package's own files, compressed once, under a policy that lets nothing else in."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

from aiohttp import hdrs, web

from gguf_imagegen.api.openapi.contract import endpoint
from gguf_imagegen.api.urls import prefix
from gguf_imagegen.vocabulary.errors import NotFound

TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "webmanifest": "application/manifest+json",
}
DOCUMENTS = ("text/html", "image/svg+xml")
"""What a browser shows by itself; on scripts a policy does nothing, and it is as long as many of them."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self';"
    " manifest-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Asset:
    """A file as it is sent."""

    content_type: str
    plain: bytes

    @cached_property
    def packed(self) -> bytes:
        return gzip.compress(self.plain, 6, mtime=0)

    @cached_property
    def tag(self) -> str:
        """Its ETag."""
        return f'"{hashlib.sha256(self.plain).hexdigest()[:20]}"'


def load_assets() -> dict[str, Asset]:
    """The files by name: our own, and those of the viewer of the API's description."""
    folder = resources.files("gguf_imagegen") / "web"
    return {
        file.name: Asset(TYPES[kind], file.read_bytes())
        for each in (folder, folder / "swagger-ui")
        for file in each.iterdir()
        if (kind := file.name.rpartition(".")[2]) in TYPES
    }


ASSETS = web.AppKey("assets", dict[str, Asset])


@endpoint(None, also={304: None, 308: None}, media=("text/html",))
async def page(request: web.Request) -> web.Response:
    """GET /: the page itself; its addresses are relative, so below a prefix its own must end in a slash."""
    if not request.raw_path.partition("?")[0].endswith("/") and (below := prefix(request)):
        raise web.HTTPPermanentRedirect(f"{below}/")
    return await answer(request, "index.html")


@endpoint(None, errors=(NotFound,), also={304: None}, media=tuple(sorted({*TYPES.values()})))
async def asset(request: web.Request) -> web.Response:
    """GET /web/{name}: its style, scripts and icon."""
    return await answer(request, request.match_info["name"])


async def answer(request: web.Request, name: str) -> web.Response:
    """The file of this name, or that the client has it."""
    found = request.app[ASSETS].get(name)
    if found is None:
        raise NotFound(f"there is no {name[:100]!r} here")
    headers = {"Cache-Control": "no-cache", "ETag": found.tag, "Vary": "Accept-Encoding"}
    if found.content_type in DOCUMENTS:
        headers |= {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
    if found.tag in request.headers.get(hdrs.IF_NONE_MATCH, ""):
        return web.Response(status=304, headers=headers)
    packs = "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, "")
    if packs:
        headers["Content-Encoding"] = "gzip"
    body = await asyncio.to_thread(lambda: found.packed) if packs else found.plain
    return web.Response(body=body, content_type=found.content_type, charset="utf-8", headers=headers)
