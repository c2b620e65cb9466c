"""Azure's OpenAI: the deployment in the path is the model, `?api-version=` says nothing to us.

https://learn.microsoft.com/en-us/azure/ai-services/openai/reference: `POST {endpoint}/openai/deployments/
{deployment-id}/images/generations`, with the key in the header `api-key`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aiohttp import web

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.dialect import Dialect
from gguf_imagegen.api.dialects import chat, openai
from gguf_imagegen.api.openapi.contract import with_contract


@openai.images_endpoint("prompt")
async def generations(request: web.Request) -> web.StreamResponse:
    """POST /openai/deployments/{model}/images/generations."""
    return await openai.respond(request, await _fields(request), "generation")


@openai.images_endpoint("prompt", "image")
async def edits(request: web.Request) -> web.StreamResponse:
    """POST /openai/deployments/{model}/images/edits."""
    return await openai.respond(request, await _fields(request), "edit")


@with_contract(replace(chat.CONTRACT, example={}))
async def completions(request: web.Request) -> web.StreamResponse:
    """POST /openai/deployments/{model}/chat/completions."""
    return await chat.respond(request, await _fields(request))


async def _fields(request: web.Request) -> dict[str, Any]:
    return {**await read_body(request), "model": request.match_info["model"]}


BASE = "/openai/deployments/{model}"
DIALECT = Dialect(
    "azure",
    "Azure's OpenAI",
    [
        web.post(f"{BASE}/images/generations", generations),
        web.post(f"{BASE}/images/edits", edits),
        web.post(f"{BASE}/chat/completions", completions),
    ],
    roots=("/openai/",),
)
