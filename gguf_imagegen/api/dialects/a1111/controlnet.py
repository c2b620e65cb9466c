"""What clients ask AUTOMATIC1111's ControlNet extension (sd-webui-controlnet, scripts/api.py): none is here.

A model's own ControlNet is the field `control` of the other dialects.
"""

from __future__ import annotations

from aiohttp import web

from gguf_imagegen.api.openapi.contract import endpoint


@endpoint()
async def version(request: web.Request) -> web.Response:
    """GET /controlnet/version: that of the extension's API whose answers these are."""
    return web.json_response({"version": 3})


@endpoint()
async def model_list(request: web.Request) -> web.Response:
    """GET /controlnet/model_list: none."""
    return web.json_response({"model_list": []})


@endpoint()
async def module_list(request: web.Request) -> web.Response:
    """GET /controlnet/module_list: no preprocessor but the one that does nothing."""
    return web.json_response({"module_list": ["none"], "module_detail": {}})
