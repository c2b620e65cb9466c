"""GET /openapi.json and GET /docs: the API described to programs and to people; open to all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from aiohttp import web

from gguf_imagegen.api import web_page
from gguf_imagegen.api.openapi.contract import endpoint
from gguf_imagegen.api.openapi.document import EXAMPLE_BASE
from gguf_imagegen.api.packing import compressed
from gguf_imagegen.api.urls import base_url


@dataclass
class Description:
    """The document as JSON, built at the first look and kept."""

    build: Callable[[], dict[str, Any]]

    @cached_property
    def json(self) -> bytes:
        return json.dumps(self.build(), ensure_ascii=False, separators=(",", ":")).encode()


DESCRIPTION = web.AppKey("description", Description)


@endpoint()
@compressed
async def openapi_json(request: web.Request) -> web.Response:
    """GET /openapi.json: this description, OpenAPI 3.1."""
    document = await asyncio.to_thread(lambda: request.app[DESCRIPTION].json)
    here = json.dumps(base_url(request), ensure_ascii=False)[1:-1]
    body = document.replace(EXAMPLE_BASE.encode(), here.encode())
    return web.Response(body=body, content_type="application/json")


@endpoint(None, also={304: None}, media=("text/html",))
async def docs(request: web.Request) -> web.Response:
    """GET /docs: the same to read and to try, in Swagger UI."""
    return await web_page.answer(request, "docs.html")
