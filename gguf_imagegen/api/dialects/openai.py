"""OpenAI's image routes, with llama-box's fields and streams."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from aiohttp import web

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.dialects.gpustack import NumericErrors, has_numbers, through_gateway
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.shapes import answer
from gguf_imagegen.api.streams.encoders import BothEncoder, Encoder, LlamaBoxEncoder, OpenAIEncoder
from gguf_imagegen.api.streams.send import answer_job, stream_job
from gguf_imagegen.api.submit import accepted, begin, finish, prefers_async
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
        encoder, gateway = _encoder(request, job, wanted), through_gateway(request)
        return await stream_job(
            request, job, encoder, cancel_on_leave=work.cancel_on_leave, frame_by_frame=gateway
        )
    if wanted.response_format == "file":
        return _file(job, await finish(request, work))
    body = partial(_answer, request, job, wanted)
    return await answer_job(request, job, body, cancel_on_leave=work.cancel_on_leave)


def _answer(request: web.Request, job: Job, wanted: ImageRequest) -> dict[str, Any]:
    read = request.app[SERVICE].scheduler.results.get
    return answer(job, _response_format(wanted), read, partial(file_url, request))


def _response_format(wanted: ImageRequest) -> Literal["b64_json", "url", "file"] | None:
    """As asked; OpenAI's `gpt-image` models have no addresses, and their clients take one where it is."""
    if wanted.response_format is None and (wanted.model or "").startswith("gpt-image"):
        return "b64_json"
    return wanted.response_format


def _file(job: Job, made: list[bytes]) -> web.Response:
    """The bare picture, as vLLM-Omni's `file` has it; several are a ZIP archive of them."""
    kind = job.plan.output_format
    names = [f"{job.id}-{number}.{kind}" for number in range(len(made))]
    if len(made) == 1:
        return _attachment(job, made[0], f"{job.id}.{kind}", f"image/{kind}")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in zip(names, made, strict=True):
            archive.writestr(name, data)
    return _attachment(job, packed.getvalue(), f"{job.id}.zip", "application/zip")


def _attachment(job: Job, data: bytes, name: str, kind: str) -> web.Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Job-Id": job.id}
    return web.Response(body=data, content_type=kind, headers=headers)


def _encoder(request: web.Request, job: Job, wanted: ImageRequest) -> Encoder:
    options = wanted.stream_options or StreamOptions()
    if through_gateway(request):
        options = options.model_copy(update={"chunk_results": True})
    scheduler = request.app[SERVICE].scheduler
    kinds: dict[str, Callable[..., Encoder]] = {
        "llama-box": LlamaBoxEncoder,
        "openai": OpenAIEncoder,
        "both": BothEncoder,
    }
    encoder = kinds[_dialect(request, wanted)](job, options, scheduler.results.get, scheduler.eta)
    return NumericErrors(encoder) if has_numbers(request) else encoder


def _dialect(request: web.Request, wanted: ImageRequest) -> str:
    """As asked; else OpenAI for `partial_images` or an official SDK; else llama-box (plain curl).

    GPUStack's gateway reads llama-box alone, whoever sent the request.
    """
    if wanted.stream_options and wanted.stream_options.dialect:
        return wanted.stream_options.dialect
    if through_gateway(request):
        return "llama-box"
    official = "x-stainless-lang" in request.headers and wanted.stream_options is None
    return "openai" if official or wanted.partial_images is not None else "llama-box"
