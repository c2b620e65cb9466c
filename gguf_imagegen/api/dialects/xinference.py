"""Small dialects: OpenVINO Model Server, GPUStack and Xinference, where they differ from OpenAI's routes.

Everything else of theirs are the same handlers under other paths (`gguf_imagegen.api.app`) and aliases of
fields (`gguf_imagegen.planning.request`).
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.dialects.openai import respond
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.submit import named_job
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.planning.kwargs import with_kwargs
from gguf_imagegen.vocabulary.errors import InvalidRequest

# -- OpenVINO Model Server ----------------------------------------------------------------------------


async def config(request: web.Request) -> web.Response:
    """GET /v1/config and /v3/config: which models can be asked for, in OVMS's words.

    As in https://github.com/openvinotoolkit/model_server/blob/main/demos/image_generation/README.md: a model
    is AVAILABLE when its files are on disk (it loads on demand), LOADING while it loads. Of the rest of the
    catalog only the default model is listed, as END: a client that waits for every model must not wait for
    those that nobody downloaded.
    """
    catalog = request.app[SERVICE].catalog
    entries = {entry.id: _state(request.app, entry) for entry in catalog.entries}
    default = request.app[SERVICE].default.id
    listed = {id for id, state in entries.items() if state != "END"} | {default}
    return web.json_response({id: _status(state) for id, state in entries.items() if id in listed})


def _state(app: web.Application, entry: Entry) -> str:
    if app[SERVICE].pool.loads(entry):
        return "LOADING"
    return "AVAILABLE" if app[SERVICE].catalog.on_disk(entry) and not entry.unsupported else "END"


def _status(state: str) -> dict[str, Any]:
    there = state != "END"
    status = {
        "error_code": "OK" if there else "NOT_FOUND",
        "error_message": "OK" if there else "the model's files are not on disk",
    }
    return {"model_version_status": [{"version": "1", "state": state, "status": status}]}


# -- GPUStack -----------------------------------------------------------------------------------------


# -- Xinference ---------------------------------------------------------------------------------------
# Routes and shapes: https://github.com/xorbitsai/inference/blob/main/xinference/api/restful_api.py


async def inpainting(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/inpainting: `image`, `mask_image` (white = repaint) and a prompt; answers a `url`."""
    return await respond(request, await _with_mask(request), "edit")


async def _with_mask(request: web.Request) -> dict[str, Any]:
    fields = {"response_format": "url", **await asyncio.to_thread(with_kwargs, await read_body(request))}
    if not (fields.get("mask_image") or fields.get("mask")):
        raise InvalidRequest("mask_image: is required", param="mask_image")
    return fields


async def progress(request: web.Request) -> web.Response:
    """GET /v1/requests/{request_id}/progress: 0 to 1, 1 only when the pictures are there."""
    job = _job(request)
    if job is None:
        name = request.match_info["request_id"]
        raise InvalidRequest(f"there is no request {name[:60]!r}, or it has expired", param="request_id")
    return web.json_response({"progress": round(job.progress / 100, 4)})


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
