"""Xinference: inpainting, and a request's progress and end by the name that its client gave it.

Its other image routes are OpenAI's. Routes and shapes:
https://github.com/xorbitsai/inference/blob/main/xinference/api/restful_api.py
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from gguf_imagegen.api import answers
from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.dialect import Dialect
from gguf_imagegen.api.dialects.openai import images_endpoint, respond
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import PICTURE_TEXT, endpoint
from gguf_imagegen.api.submit import named_job
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.planning.kwargs import with_kwargs
from gguf_imagegen.vocabulary.errors import InvalidRequest, ModelNotFound, UnsupportedOperation


@images_endpoint("prompt", "image", "mask", prompt="a hat", image=PICTURE_TEXT, mask_image=PICTURE_TEXT)
async def inpainting(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/inpainting: `image`, `mask_image` (white = repaint) and a prompt; answers a `url`."""
    return await respond(request, await _with_mask(request), "edit")


async def _with_mask(request: web.Request) -> dict[str, Any]:
    fields = {"response_format": "url", **await asyncio.to_thread(with_kwargs, await read_body(request))}
    if not (fields.get("mask_image") or fields.get("mask")):
        raise InvalidRequest("mask_image: is required", param="mask_image")
    return fields


@endpoint(errors=(UnsupportedOperation,), status=0)
async def ocr(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/ocr: refused, for no model here reads text."""
    raise UnsupportedOperation("this server makes pictures and reads no text in them: there is no OCR model")


@endpoint(answers.RequestProgress, errors=(InvalidRequest,))
async def progress(request: web.Request) -> web.Response:
    """GET /v1/requests/{request_id}/progress: 0 to 1, 1 only when the pictures are there."""
    job = _job(request)
    if job is None:
        name = request.match_info["request_id"]
        raise InvalidRequest(f"there is no request {name[:60]!r}, or it has expired", param="request_id")
    return web.json_response({"progress": round(job.progress / 100, 4)})


@endpoint(answers.AbortAnswer, errors=(ModelNotFound,))
async def abort(request: web.Request) -> web.Response:
    """POST /v1/models/{id}/requests/{request_id}/abort: DONE, NO_OP on an ended one, NOT_FOUND."""
    job, model = _job(request), request.app[SERVICE].model(request.match_info["id"])
    if job is None or job.plan.entry.id != model.id:
        return web.json_response({"msg": "NOT_FOUND"})
    if job.ended:
        return web.json_response({"msg": "NO_OP"})
    await request.app[SERVICE].scheduler.cancel(job)
    return web.json_response({"msg": "DONE"})


def _job(request: web.Request) -> Job | None:
    """The job by the client's `request_id`, or by its own id."""
    return named_job(request, request.match_info["request_id"])


DIALECT = Dialect(
    "xinference",
    "Xinference",
    [
        web.post("/v1/images/inpainting", inpainting),
        web.post("/v1/images/ocr", ocr),
        web.get("/v1/requests/{request_id}/progress", progress),
        web.post("/v1/models/{id}/requests/{request_id}/abort", abort),
    ],
)
