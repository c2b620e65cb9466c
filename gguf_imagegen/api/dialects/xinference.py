"""Xinference: inpainting, text in pictures, a request's progress and end by its client's name of it.

Its other image routes are OpenAI's. Routes and shapes:
https://github.com/xorbitsai/inference/blob/main/xinference/api/restful_api.py
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel

from gguf_imagegen.api import answers
from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import admins_only
from gguf_imagegen.api.dialect import Dialect
from gguf_imagegen.api.dialects import ocr
from gguf_imagegen.api.dialects.kwargs import describe_kwargs, with_kwargs
from gguf_imagegen.api.dialects.openai import images_endpoint, respond
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import ADMIN, MODEL, PICTURE_TEXT, READING, Param, endpoint
from gguf_imagegen.api.reply import Answer, reply
from gguf_imagegen.api.submit import named_job
from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.service import Service
from gguf_imagegen.vocabulary.errors import (
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    ServerBusy,
    UnsupportedOperation,
    WorkerCrashed,
)

LOOK = 0.05
"""Seconds between two looks at a model that is to be loaded."""


class LaunchRequest(BaseModel):
    """Xinference's other fields (replicas, GPUs, engines) are ignored: the server decides."""

    model_name: str
    quantization: str | None = None


class LaunchAnswer(Answer):
    """`model_uid` is the name by which requests ask for it."""

    model_uid: str


@endpoint(
    LaunchAnswer,
    request=LaunchRequest,
    required=("model_name",),
    errors=(
        *READING, *MODEL, *ADMIN, UnsupportedOperation, ModelLoadFailed, WorkerCrashed, InsufficientMemory,
        ServerBusy,
    ),
    params=(Param("wait_ready", "query", {"type": "boolean"}, "answer when it is loaded"),),
    example={"model_name": "glyph-128", "model_type": "image"},
)  # fmt: skip
@admins_only
async def launch(request: web.Request) -> web.Response:
    """POST /v1/models: load a model that is on disk, by default until it is ready; its uid is its name."""
    service, body = request.app[SERVICE], await read_body(request)
    name, quant = body.get("model_name") or body.get("model"), body.get("quantization")
    if not isinstance(name, str):
        raise InvalidRequest("model_name: is required", param="model_name")
    entry = service.catalog.get(f"{name}:{quant}" if isinstance(quant, str) and quant != "none" else name)
    service.catalog.require_within_reach(entry)
    service.scheduler.want(entry)
    if request.query.get("wait_ready", "true").lower() != "false":
        await _until_loaded(service, entry)
    return reply(LaunchAnswer, {"model_uid": name})


async def _until_loaded(service: Service, entry: Entry) -> None:
    """Return when the model is in memory; raise why it is not, or ServerBusy when it takes too long."""
    end = time.monotonic() + service.settings.load_timeout
    while not service.pool.holds(entry):
        if error := service.pool.errors.get(entry.name):
            raise error.bare()
        if time.monotonic() > end:
            raise ServerBusy(f"{entry.name} is not loaded yet: other jobs run; ask again later")
        await asyncio.sleep(LOOK)


@endpoint(answers.ObjectList, params=(Param("detailed", "query", {"type": "boolean"}, "more of each"),))
async def registrations(request: web.Request) -> web.Response:
    """GET /v1/model_registrations/{type}: the catalog under `image`, nothing under other types."""
    catalog = request.app[SERVICE].catalog
    listed = catalog.entries if request.match_info["type"] == "image" else []
    detailed = request.query.get("detailed", "").lower() == "true"
    data = await asyncio.to_thread(lambda: [_registration(catalog, entry, detailed) for entry in listed])
    return reply(answers.ObjectList, data)


@endpoint(errors=(ModelNotFound,))
async def registration(request: web.Request) -> web.Response:
    """GET /v1/model_registrations/{type}/{name}: one of them, with all that is said of it."""
    catalog, name = request.app[SERVICE].catalog, request.match_info["name"]
    if request.match_info["type"] != "image":
        raise ModelNotFound(
            f"there is no {request.match_info['type'][:40]} model {name[:100]!r}", param="name"
        )
    entry = catalog.get(name)
    return reply(answers.AnyObject, await asyncio.to_thread(_registration, catalog, entry, True))


def _registration(catalog: Catalog, entry: Entry, detailed: bool) -> dict[str, Any]:
    """In Xinference's words; `cache_status` says whether it is on disk."""
    said: dict[str, Any] = {"model_name": entry.id, "is_builtin": True}
    if detailed:
        said |= {
            "model_type": "image",
            "model_family": entry.family,
            "model_id": entry.source or entry.id,
            "model_description": entry.description,
            "model_ability": list(entry.capabilities),
            "quantizations": [each.quant for each in catalog.quants(entry.id) if each.quant],
            "cache_status": catalog.within_reach(entry),
        }
    return said


@images_endpoint("prompt", "image", "mask", prompt="a hat", image=PICTURE_TEXT, mask_image=PICTURE_TEXT)
async def inpainting(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/inpainting: `image`, `mask_image` (white = repaint) and a prompt; answers a `url`."""
    return await respond(request, await _with_mask(request), "edit")


async def _with_mask(request: web.Request) -> dict[str, Any]:
    fields = {"response_format": "url", **await asyncio.to_thread(with_kwargs, await read_body(request))}
    if not (fields.get("mask_image") or fields.get("mask")):
        raise InvalidRequest("mask_image: is required", param="mask_image")
    return fields


@endpoint(answers.RequestProgress, errors=(InvalidRequest,))
async def progress(request: web.Request) -> web.Response:
    """GET /v1/requests/{request_id}/progress: 0 to 1, 1 only when the pictures are there."""
    job = _job(request)
    if job is None:
        name = request.match_info["request_id"]
        raise InvalidRequest(f"there is no request {name[:60]!r}, or it has expired", param="request_id")
    return reply(answers.RequestProgress, {"progress": round(job.progress / 100, 4)})


class AbortAnswer(Answer):
    msg: Literal["DONE", "NO_OP", "NOT_FOUND"]


@endpoint(AbortAnswer, errors=(ModelNotFound,))
async def abort(request: web.Request) -> web.Response:
    """POST /v1/models/{id}/requests/{request_id}/abort: DONE, NO_OP on an ended one, NOT_FOUND."""
    job, model = _job(request), request.app[SERVICE].model(request.match_info["id"])
    if job is None or job.plan.entry.id != model.id:
        return reply(AbortAnswer, {"msg": "NOT_FOUND"})
    if job.ended:
        return reply(AbortAnswer, {"msg": "NO_OP"})
    await request.app[SERVICE].scheduler.cancel(job)
    return reply(AbortAnswer, {"msg": "DONE"})


def _job(request: web.Request) -> Job | None:
    """The job by the client's `request_id`, or by its own id."""
    return named_job(request, request.match_info["request_id"])


DIALECT = Dialect(
    "xinference",
    "Xinference",
    [
        web.post("/v1/models", launch),
        web.get("/v1/model_registrations/{type}", registrations),
        web.get("/v1/model_registrations/{type}/{name}", registration),
        web.post("/v1/images/inpainting", inpainting),
        web.post("/v1/images/ocr", ocr.ocr),
        web.get("/v1/requests/{request_id}/progress", progress),
        web.post("/v1/models/{id}/requests/{request_id}/abort", abort),
    ],
    unwrap=with_kwargs,
    describe=describe_kwargs,
)
