"""OpenAI's image routes, with llama-box's fields and streams, and one like them that enlarges."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from aiohttp import web

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import caller_of
from gguf_imagegen.api.dialect import DIALECTS, Dialect
from gguf_imagegen.api.dialects.llamabox import GatewayEncoder, no_news, through_gateway
from gguf_imagegen.api.job_answers import ImagesAnswer, ResponseFormat
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import (
    EVENTS,
    JSON,
    PICTURE_TEXT,
    Endpoint,
    picture_contract,
    with_contract,
)
from gguf_imagegen.api.streams.encoders import Encoder, LlamaBoxEncoder, OpenAIEncoder
from gguf_imagegen.api.streams.frames import HEARTBEAT
from gguf_imagegen.api.streams.send import answer_job, stream_job
from gguf_imagegen.api.submit import accepted, begin, finish, prefers_async
from gguf_imagegen.api.urls import file_url
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.jobs.results import MISSING, NAME
from gguf_imagegen.planning.plan import Operation
from gguf_imagegen.planning.request import ImageRequest, StreamOptions
from gguf_imagegen.vocabulary.errors import NotFound

CAT = {"prompt": "a lovely cat", "size": "64x64", "steps": 2}
FRAMES = (
    "With `stream: true`: `data:` lines of JSON, comments as heartbeats, `data: [DONE]` at the end, `event:"
    " error` with the error object on failure. Dialects (`stream_options.dialect`): llama-box's `image.chunk`"
    " frame per step; OpenAI's `image_generation.partial_image` and `.completed` (`image_edit.` for edits);"
    " both."
)


FILES = ("image/png", "image/jpeg", "image/webp", "application/zip")
"""With `response_format: "file"`."""


def images_endpoint(*required: str, **example: Any) -> Callable[[Endpoint], Endpoint]:
    """The contract of routes that make pictures from an `ImageRequest`."""
    return with_contract(
        picture_contract(
            ImagesAnswer,
            ImageRequest,
            required=required,
            form=True,
            media=(JSON, EVENTS, *FILES),
            events=FRAMES,
            example=example,
        )
    )


@images_endpoint("prompt", **CAT)
async def generations(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/generations: text to image."""
    return await respond(request, await read_body(request), "generation")


@images_endpoint("prompt", "image", prompt="a dog", image=PICTURE_TEXT, strength=0.5)
async def edits(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/edits: an image, perhaps a mask, and a prompt."""
    return await respond(request, await read_body(request), "edit")


@images_endpoint("image", image=PICTURE_TEXT, n=2)
async def variations(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/variations: an image; a prompt is welcome, and not needed."""
    return await respond(request, await read_body(request), "variation")


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
            request,
            job,
            encoder,
            cancel_on_leave=work.cancel_on_leave,
            frame_by_frame=gateway,
            heartbeat=no_news(job) if gateway else HEARTBEAT,
        )
    if wanted.response_format == "file":
        return _file(job, await finish(request, work))
    body = partial(_answer, request, job, wanted)
    return await answer_job(request, job, ImagesAnswer, body, cancel_on_leave=work.cancel_on_leave)


def _answer(request: web.Request, job: Job, wanted: ImageRequest) -> ImagesAnswer:
    read = request.app[SERVICE].scheduler.results.get
    return ImagesAnswer.of(job, _response_format(wanted), read, partial(file_url, request))


def _response_format(wanted: ImageRequest) -> ResponseFormat | None:
    """As asked; OpenAI's `gpt-image` models have no addresses, and their clients take one where it is."""
    if wanted.response_format is None and (wanted.model or "").startswith("gpt-image"):
        return "b64_json"
    return wanted.response_format


def _file(job: Job, made: list[bytes]) -> web.Response:
    """The bare picture, as vLLM-Omni's `file` has it; several are a ZIP archive of them."""
    kind = job.plan.output_format
    names = [f"{job.id}-{number}.{kind}" for number in range(len(made))]
    if len(made) == 1:
        return _attachment(made[0], f"{job.id}.{kind}", f"image/{kind}")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in zip(names, made, strict=True):
            archive.writestr(name, data)
    return _attachment(packed.getvalue(), f"{job.id}.zip", "application/zip")


def _attachment(data: bytes, name: str, kind: str) -> web.Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return web.Response(body=data, content_type=kind, headers=headers)


def _encoder(request: web.Request, job: Job, wanted: ImageRequest) -> Encoder:
    options = wanted.stream_options or StreamOptions()
    scheduler = request.app[SERVICE].scheduler
    dialects = request.app[DIALECTS]
    encoder = dialects.streams.get(_stream(request, wanted), OpenAIEncoder)
    if through_gateway(request):
        options = options.model_copy(update={"chunk_results": True})
        encoder = GatewayEncoder if encoder is LlamaBoxEncoder else encoder
    return dialects.of(request).errors.in_stream(encoder(job, options, scheduler.results.get, scheduler.eta))


def _stream(request: web.Request, wanted: ImageRequest) -> str:
    """As asked; else OpenAI for `partial_images` or an official SDK; else llama-box (plain curl).

    GPUStack's gateway reads llama-box alone, whoever sent the request.
    """
    if wanted.stream_options and wanted.stream_options.dialect:
        return wanted.stream_options.dialect
    if through_gateway(request):
        return "llama-box"
    official = "x-stainless-lang" in request.headers and wanted.stream_options is None
    return "openai" if official or wanted.partial_images is not None else "llama-box"


DIALECT = Dialect(
    "openai",
    "OpenAI",
    [
        web.post("/v1/images/generations", generations),
        web.post("/v1/images/edits", edits),
        web.post("/v1/images/variations", variations),
        web.post("/v1/images/upscale", upscale),
    ],
    streams={"openai": OpenAIEncoder},
)
