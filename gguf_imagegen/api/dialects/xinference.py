"""Small dialects: OpenVINO Model Server, GPUStack and Xinference, where they differ from OpenAI's routes.

Everything else of theirs are the same handlers under other paths (`gguf_imagegen.api.app`) and aliases of
fields (`gguf_imagegen.planning.request`).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import admins_only
from gguf_imagegen.api.dialects.openai import respond
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.submit import named_job
from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.planning.kwargs import with_kwargs
from gguf_imagegen.service import Service
from gguf_imagegen.vocabulary.errors import InvalidRequest, ModelNotFound, ServerBusy, UnsupportedOperation

LOOK = 0.05
"""Seconds between two looks at a model that is to be loaded."""

# -- OpenVINO Model Server ----------------------------------------------------------------------------


async def config(request: web.Request) -> web.Response:
    """GET /v1/config and /v3/config: which models can be asked for, in OVMS's words.

    As in https://github.com/openvinotoolkit/model_server/blob/main/demos/image_generation/README.md: a model
    is AVAILABLE when its files are on disk (it loads on demand), LOADING while it loads. Of the rest of the
    catalog only the default model is listed, as END: a client that waits for every model must not wait for
    those that nobody downloaded.
    """
    service = request.app[SERVICE]
    states = {service.name_of(entry): _state(request.app, entry) for entry in service.catalog.entries}
    listed = {name for name, state in states.items() if state != "END"} | {service.served_name}
    return web.json_response({name: _status(state) for name, state in states.items() if name in listed})


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


@admins_only
async def launch(request: web.Request) -> web.Response:
    """POST /v1/models: load a model that is on disk, by default until it can be asked; its uid is its name."""
    service, body = request.app[SERVICE], await read_body(request)
    name, quant = body.get("model_name") or body.get("model"), body.get("quantization")
    if not isinstance(name, str):
        raise InvalidRequest("model_name: is required", param="model_name")
    entry = service.catalog.get(f"{name}:{quant}" if isinstance(quant, str) and quant != "none" else name)
    service.catalog.require_on_disk(entry)
    service.scheduler.want(entry)
    if request.query.get("wait_ready", "true").lower() != "false":
        await _until_loaded(service, entry)
    return web.json_response({"model_uid": name})


async def _until_loaded(service: Service, entry: Entry) -> None:
    """Return when the model is in memory; raise why it is not, or ServerBusy when it takes too long."""
    end = time.monotonic() + service.settings.load_timeout
    while not service.pool.holds(entry):
        if error := service.pool.errors.get(entry.name):
            raise error.bare()
        if time.monotonic() > end:
            raise ServerBusy(f"{entry.name} is not loaded yet: other jobs run; ask again later")
        await asyncio.sleep(LOOK)


async def launch_progress(request: web.Request) -> web.Response:
    """GET /v1/models/{id}/progress: how far its load is, 0 to 1."""
    pool = request.app[SERVICE].pool
    entry = request.app[SERVICE].model(request.match_info["id"])
    if pool.holds(entry):
        return web.json_response({"progress": 1.0})
    going = pool.loading if pool.loads(entry) else None
    share = going.done / going.total if going is not None and going.total else 0.0
    return web.json_response({"progress": round(share, 4)})


async def registrations(request: web.Request) -> web.Response:
    """GET /v1/model_registrations/{type}: the catalog under `image`, nothing under other types."""
    catalog = request.app[SERVICE].catalog
    listed = catalog.entries if request.match_info["type"] == "image" else []
    detailed = request.query.get("detailed", "").lower() == "true"
    data = await asyncio.to_thread(lambda: [_registration(catalog, entry, detailed) for entry in listed])
    return web.json_response(data)


async def registration(request: web.Request) -> web.Response:
    """GET /v1/model_registrations/{type}/{name}: one of them, with all that is said of it."""
    catalog, name = request.app[SERVICE].catalog, request.match_info["name"]
    if request.match_info["type"] != "image":
        raise ModelNotFound(
            f"there is no {request.match_info['type'][:40]} model {name[:100]!r}", param="name"
        )
    entry = catalog.get(name)
    return web.json_response(await asyncio.to_thread(_registration, catalog, entry, True))


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
            "cache_status": catalog.on_disk(entry),
        }
    return said


async def inpainting(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/inpainting: `image`, `mask_image` (white = repaint) and a prompt; answers a `url`."""
    return await respond(request, await _with_mask(request), "edit")


async def _with_mask(request: web.Request) -> dict[str, Any]:
    fields = {"response_format": "url", **await asyncio.to_thread(with_kwargs, await read_body(request))}
    if not (fields.get("mask_image") or fields.get("mask")):
        raise InvalidRequest("mask_image: is required", param="mask_image")
    return fields


async def ocr(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/ocr: refused, for no model here reads text."""
    raise UnsupportedOperation("this server makes pictures and reads no text in them: there is no OCR model")


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
