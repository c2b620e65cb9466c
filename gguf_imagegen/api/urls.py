"""Absolute URLs of this server as the client sees it."""

from __future__ import annotations

from aiohttp import web

from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.proxies import seen_of


def base_url(request: web.Request) -> str:
    """`--public-url`, else the address that the request was sent to, with the prefix of this server."""
    settings = request.app[SERVICE].settings
    if settings.public_url:
        base = settings.public_url.rstrip("/")
        return base if base.endswith(settings.root_path) else base + settings.root_path
    seen = seen_of(request)
    return f"{seen.scheme}://{seen.host or request.host}{prefix(request)}"


def prefix(request: web.Request) -> str:
    """`--root-path`, else what a trusted proxy says that it has cut off; no slash at its end."""
    return request.app[SERVICE].settings.root_path or seen_of(request).prefix


def file_url(request: web.Request, name: str) -> str:
    return f"{base_url(request)}/v1/images/files/{name}"
