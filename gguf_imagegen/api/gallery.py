"""The finished images of this server, with what they were made of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from aiohttp import web

from gguf_imagegen.api.callers import caller_of
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.paging import limit_of
from gguf_imagegen.api.urls import file_url
from gguf_imagegen.jobs.results import MISSING, ResultStore
from gguf_imagegen.pictures import decode, infotext
from gguf_imagegen.vocabulary.errors import ImagegenError, NotFound

PAGE = 60
TEXTS_KEPT = 5000
_texts: WeakKeyDictionary[ResultStore, dict[str, str]] = WeakKeyDictionary()
"""What images were made of by their names, which are never given twice: a page is read again and again."""


async def list_images(request: web.Request) -> web.Response:
    """GET /v1/images: the newest first; `limit` of 60, at most 200, from after the one named `before`."""
    limit = limit_of(request, PAGE)
    results, before = request.app[SERVICE].scheduler.results, request.query.get("before")
    names = await asyncio.to_thread(results.names, caller_of(request).may_see)
    names = [name for name in names if before is None or name < before]
    page, url = names[:limit], partial(file_url, request)
    data = await asyncio.to_thread(lambda: [item for name in page if (item := _view(results, name, url))])
    return web.json_response({"object": "list", "data": data, "has_more": len(names) > len(page)})


async def delete_image(request: web.Request) -> web.Response:
    """DELETE /v1/images/files/{name}: for good, also from the folder that keeps it."""
    name = request.match_info["name"]
    results = request.app[SERVICE].scheduler.results
    if not caller_of(request).may_see(results.owner(name)):
        raise NotFound(MISSING)
    await asyncio.to_thread(results.delete, name)
    return web.json_response({"id": name, "object": "image", "deleted": True})


def _view(results: ResultStore, name: str, url: Callable[[str], str]) -> dict[str, Any] | None:
    """None for one that vanished meanwhile, or whose file is damaged."""
    texts = _texts.setdefault(results, {})
    text = texts.get(name)
    if text is None:
        try:
            text = decode.read_parameters(results.get(name)) or ""
        except ImagegenError:
            return None
        if len(texts) >= TEXTS_KEPT:
            texts.clear()
        texts[name] = text
    made = time.mktime(time.strptime(name[:15], "%Y%m%d-%H%M%S"))
    return {
        "id": name,
        "object": "image",
        "created": int(made),
        "url": url(name),
        "parameters": infotext.parse_parameters(text),
        "text": text,
    }
