"""The finished images of this server, with what they were made of."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from aiohttp import hdrs, web
from pydantic import BaseModel

from gguf_imagegen.api import answers
from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import caller_of
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import READING, Param, endpoint
from gguf_imagegen.api.paging import LIMIT, limit_of
from gguf_imagegen.api.reply import reply
from gguf_imagegen.api.urls import file_url
from gguf_imagegen.jobs.results import MISSING, ResultStore
from gguf_imagegen.pictures import data_urls, decode, infotext, thumbnails
from gguf_imagegen.planning.request import Upload
from gguf_imagegen.vocabulary.errors import ImagegenError, InvalidImage, InvalidRequest, NotFound

PAGE = 60
THUMBNAIL = 512
"""Width of the thumbnails in the list: sharp in a gallery on a dense screen."""
SHOWN_ANYWHERE = {"Cross-Origin-Resource-Policy": "cross-origin"}
"""Pages show pictures whose address they know."""
KEPT_BY_BROWSERS = {"Cache-Control": "private, max-age=86400, immutable"}
TEXTS_KEPT = 5000
BEFORE = Param("before", "query", {"type": "string"}, "go on after the image of this name")
WIDTH = Param(
    "width", "query", {"type": "integer", "minimum": 1, "maximum": 99_999},
    "a thumbnail about so wide instead, as WebP; rounded up to a few widths, never enlarged",
)  # fmt: skip
_texts: WeakKeyDictionary[ResultStore, dict[str, str]] = WeakKeyDictionary()
"""What images were made of by their names, which are never given twice: a page is read again and again."""


@endpoint(answers.ImageList, errors=(InvalidRequest,), params=(LIMIT, BEFORE))
async def list_images(request: web.Request) -> web.Response:
    """GET /v1/images: the newest first; `limit` of 60, at most 200, from after the one named `before`."""
    limit = limit_of(request, PAGE)
    results, before = request.app[SERVICE].scheduler.results, request.query.get("before")
    names = await asyncio.to_thread(results.names, caller_of(request).may_see)
    total, names = len(names), [name for name in names if before is None or name < before]
    page, url = names[:limit], partial(file_url, request)
    data = await asyncio.to_thread(lambda: [item for name in page if (item := _view(results, name, url))])
    body = {"object": "list", "data": data, "has_more": len(names) > len(page), "total": total}
    return reply(answers.ImageList, body)


@endpoint(
    None,
    errors=(NotFound, InvalidRequest),
    also={304: None},
    media=("image/png", "image/jpeg", "image/webp"),
    params=(WIDTH,),
)
async def get_image(request: web.Request) -> web.Response:
    """GET /v1/images/files/{name}: an image of a `url` answer; with `width` a thumbnail of it."""
    name, width = request.match_info["name"], _width(request)
    headers, media = dict(SHOWN_ANYWHERE), "image/webp"
    small = None
    if width is not None:
        small = await request.app[SERVICE].thumbnail(name, width)
        headers |= {**KEPT_BY_BROWSERS, "ETag": f'"{name}.{width}"'}
        if headers["ETag"] in request.headers.get(hdrs.IF_NONE_MATCH, ""):
            return web.Response(status=304, headers=headers)
    if small is None:
        small = await asyncio.to_thread(request.app[SERVICE].results.get, name)
        media = f"image/{name.rsplit('.', 1)[1]}"
    return web.Response(body=small, content_type=media, headers=headers)


def _width(request: web.Request) -> int | None:
    """The width to make; None for the picture as it is."""
    given = request.query.get("width")
    if given is None:
        return None
    if not re.fullmatch(r"0*[1-9][0-9]{0,4}", given, re.ASCII):
        raise InvalidRequest("width: must be a number of pixels from 1 to 99999", param="width")
    return thumbnails.step(int(given))


class ImageInfoRequest(BaseModel):
    image: Upload


@endpoint(
    answers.ImageInfo,
    request=ImageInfoRequest,
    form=True,
    required=("image",),
    errors=(*READING, InvalidImage),
)
async def image_info(request: web.Request) -> web.Response:
    """POST /v1/images/info: what is written in a picture, such as the settings that made it."""
    fields = await read_body(request)
    info = await asyncio.to_thread(_info, fields.get("image"))
    return reply(answers.ImageInfo, info.model_dump())


def _info(given: object) -> answers.ImageInfo:
    if isinstance(given, list) and len(given) == 1:
        (given,) = given  # a form's part
    if isinstance(given, str):
        given = data_urls.decode_data_url(given, "image")
    if not isinstance(given, bytes):
        raise InvalidRequest("image: one picture is required", param="image")
    text = decode.read_parameters(given) or ""
    parts = infotext.parse_parameters(text) if text else {}
    return answers.ImageInfo(object="image.info", text=text, parameters=parts)


@endpoint(answers.Deleted, errors=(NotFound,))
async def delete_image(request: web.Request) -> web.Response:
    """DELETE /v1/images/files/{name}: for good, also from the folder that keeps it."""
    name = request.match_info["name"]
    results = request.app[SERVICE].scheduler.results
    if not caller_of(request).may_see(results.owner(name)):
        raise NotFound(MISSING)
    await asyncio.to_thread(results.delete, name)
    return reply(answers.Deleted, {"id": name, "object": "image", "deleted": True})


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
        "thumbnail": f"{url(name)}?width={THUMBNAIL}",
        "parameters": infotext.parse_parameters(text),
        "text": text,
    }
