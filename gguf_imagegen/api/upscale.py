"""Enlarging finished pictures and uploads on a route of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import caller_of
from gguf_imagegen.api.dialects.openai import images_endpoint, respond
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import PICTURE_TEXT
from gguf_imagegen.jobs.results import MISSING, NAME
from gguf_imagegen.vocabulary.errors import NotFound


@images_endpoint("image", image=PICTURE_TEXT, upscale=2)
async def upscale(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/upscale: an image, or the name of a stored one, larger; `model` is the upscaler."""
    fields = dict(await read_body(request))
    if model := fields.pop("model", None):
        fields.setdefault("upscaler", model)
    fields["image"] = await asyncio.to_thread(_images, request, fields)
    return await respond(request, fields, "upscale")


def _images(request: web.Request, fields: Mapping[str, Any]) -> list[Any]:
    """The uploads as they came, and the files of stored images in the place of their names."""
    image = fields.get("image") or []
    return [_stored(request, each) for each in (image if isinstance(image, list) else [image])]


def _stored(request: web.Request, image: object) -> object:
    if not isinstance(image, str) or NAME.fullmatch(image) is None:
        return image
    results = request.app[SERVICE].results
    if not caller_of(request).may_see(results.owner(image)):
        raise NotFound(MISSING)
    return results.get(image)
