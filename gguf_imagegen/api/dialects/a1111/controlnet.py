"""What clients ask AUTOMATIC1111's ControlNet extension (sd-webui-controlnet, scripts/api.py): none is here.

A model's own ControlNet is the field `control` of the other dialects.
"""

from __future__ import annotations

from aiohttp import web

from gguf_imagegen.api import answers
from gguf_imagegen.api.openapi.contract import endpoint
from gguf_imagegen.api.reply import reply


@endpoint()
async def version(request: web.Request) -> web.Response:
    """GET /controlnet/version: that of the extension's API whose answers these are."""
    return reply(answers.AnyObject, {"version": 3})


@endpoint()
async def model_list(request: web.Request) -> web.Response:
    """GET /controlnet/model_list: none."""
    return reply(answers.AnyObject, {"model_list": []})


@endpoint()
async def module_list(request: web.Request) -> web.Response:
    """GET /controlnet/module_list: no preprocessor but the one that does nothing."""
    return reply(answers.AnyObject, {"module_list": ["none"], "module_detail": {}})
