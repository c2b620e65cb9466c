"""OpenAI's image routes, with llama-box's fields and streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from aiohttp import web

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.shapes import answer
from gguf_imagegen.api.streams.encoders import BothEncoder, Encoder, LlamaBoxEncoder, OpenAIEncoder
from gguf_imagegen.api.streams.send import answer_job, stream_job
from gguf_imagegen.api.submit import accepted, begin, prefers_async
from gguf_imagegen.api.urls import file_url
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.planning.plan import Operation
from gguf_imagegen.planning.request import ImageRequest, StreamOptions


async def generations(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/generations: text to image."""
    return await respond(request, await read_body(request), "generation")


async def edits(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/edits: an image, perhaps a mask, and a prompt."""
    return await respond(request, await read_body(request), "edit")


async def variations(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/variations: an image; a prompt is welcome, and not needed."""
    return await respond(request, await read_body(request), "variation")


async def files(request: web.Request) -> web.Response:
    """GET /v1/images/files/{name}: an image of a `url` answer."""
    name = request.match_info["name"]
    data = await asyncio.to_thread(request.app[SERVICE].scheduler.results.get, name)
    headers = {"Cross-Origin-Resource-Policy": "cross-origin"}  # pages show pictures whose address they know
    return web.Response(body=data, content_type=f"image/{name.rsplit('.', 1)[1]}", headers=headers)


async def respond(
    request: web.Request, fields: Mapping[str, Any], operation: Operation
) -> web.StreamResponse:
    """The answer as the fields and headers want it: streamed, at once (202), or waited for."""
    work = await begin(request, fields, operation)
    del fields  # with the pictures in them, while the job waits and runs
    job, wanted = work.job, work.wanted
    if prefers_async(request):
        return accepted(request, job)
    if wanted.stream:
        encoder = _encoder(request, job, wanted)
        return await stream_job(request, job, encoder, cancel_on_leave=work.cancel_on_leave)
    body = partial(_answer, request, job, wanted)
    return await answer_job(request, job, body, cancel_on_leave=work.cancel_on_leave)


def _answer(request: web.Request, job: Job, wanted: ImageRequest) -> dict[str, Any]:
    read = request.app[SERVICE].scheduler.results.get
    return answer(job, _response_format(wanted), read, partial(file_url, request))


def _response_format(wanted: ImageRequest) -> Literal["b64_json", "url"] | None:
    """As asked; OpenAI's `gpt-image` models have no addresses, and their clients take one where it is."""
    if wanted.response_format is None and (wanted.model or "").startswith("gpt-image"):
        return "b64_json"
    return wanted.response_format


def _encoder(request: web.Request, job: Job, wanted: ImageRequest) -> Encoder:
    options = wanted.stream_options or StreamOptions()
    scheduler = request.app[SERVICE].scheduler
    kinds: dict[str, Callable[..., Encoder]] = {
        "llama-box": LlamaBoxEncoder,
        "openai": OpenAIEncoder,
        "both": BothEncoder,
    }
    return kinds[_dialect(request, wanted)](job, options, scheduler.results.get, scheduler.eta)


def _dialect(request: web.Request, wanted: ImageRequest) -> str:
    """As asked; else OpenAI for `partial_images` or an official SDK; else llama-box (plain curl)."""
    if wanted.stream_options and wanted.stream_options.dialect:
        return wanted.stream_options.dialect
    official = "x-stainless-lang" in request.headers and wanted.stream_options is None
    return "openai" if official or wanted.partial_images is not None else "llama-box"
