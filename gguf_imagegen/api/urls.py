"""Absolute URLs of this server as the client sees it."""

from __future__ import annotations

from aiohttp import web

from gguf_imagegen.api.keys import SERVICE


def base_url(request: web.Request) -> str:
    """`--public-url`, else what a proxy says in X-Forwarded-*, else the request's own host."""
    settings = request.app[SERVICE].settings
    if settings.public_url:
        return settings.public_url.rstrip("/")
    scheme = request.headers.get("X-Forwarded-Proto", request.scheme).split(",")[0].strip()
    host = request.headers.get("X-Forwarded-Host", request.host).split(",")[0].strip()
    return f"{scheme if scheme in ('http', 'https') else request.scheme}://{host}"


def file_url(request: web.Request, name: str) -> str:
    return f"{base_url(request)}/v1/images/files/{name}"
