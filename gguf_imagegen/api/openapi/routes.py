"""GET /openapi.json and GET /docs: the API described to programs and to people; static, and open to all."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

from aiohttp import web

from gguf_imagegen.api.openapi.contract import endpoint
from gguf_imagegen.api.openapi.docs_page import EXAMPLE_BASE
from gguf_imagegen.api.packing import compressed
from gguf_imagegen.api.urls import base_url


@dataclass
class Description:
    """What is made at the first look and kept: `build` gives the document, `render` a page from it."""

    build: Callable[[], dict[str, Any]]
    render: Callable[[dict[str, Any]], str]
    style: str

    @cached_property
    def document(self) -> dict[str, Any]:
        return self.build()

    @cached_property
    def json(self) -> bytes:
        return json.dumps(self.document, ensure_ascii=False, separators=(",", ":")).encode()

    @cached_property
    def page(self) -> bytes:
        return self.render(self.document).encode()

    @cached_property
    def policy(self) -> str:
        """Nothing but the page itself and its own style, known by its hash: no scripts, no network."""
        digest = base64.b64encode(hashlib.sha256(self.style.encode()).digest()).decode("ascii")
        return (
            f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none';"
            " frame-ancestors 'none'"
        )


DESCRIPTION = web.AppKey("description", Description)


@endpoint()
@compressed
async def openapi_json(request: web.Request) -> web.Response:
    """GET /openapi.json: this description, OpenAPI 3.1."""
    document = await asyncio.to_thread(lambda: request.app[DESCRIPTION].json)
    here = json.dumps(base_url(request), ensure_ascii=False)[1:-1]
    body = document.replace(EXAMPLE_BASE.encode(), here.encode())
    return web.Response(body=body, content_type="application/json")


@endpoint(None, media=("text/html",))
async def docs(request: web.Request) -> web.Response:
    """GET /docs: the same as a page to read."""
    description = request.app[DESCRIPTION]
    page = await asyncio.to_thread(lambda: description.page)
    body = page.replace(EXAMPLE_BASE.encode(), escape(base_url(request)).encode())
    headers = {"Content-Security-Policy": description.policy, "Referrer-Policy": "no-referrer"}
    return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)
