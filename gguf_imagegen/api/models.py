"""The models: OpenAI's list with everything that a generic client must know to ask for a picture."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from gguf_imagegen.api import answers
from gguf_imagegen.api.callers import admins_only, caller_of
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import ADMIN, MODEL, Param, endpoint
from gguf_imagegen.api.packing import compressed, tag_of
from gguf_imagegen.api.pull import PULLS
from gguf_imagegen.api.reply import reply
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.quants import Quant, Survey, best_of
from gguf_imagegen.jobs import memory
from gguf_imagegen.planning.bounds import Bounds, within
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidRequest, ModelBusy, ModelNotFound, UnsupportedOperation

USUAL_WAIT, LONGEST_WAIT = 60, 600
WAIT = Param(
    "wait", "query", {"type": "integer", "minimum": 0, "maximum": LONGEST_WAIT, "default": USUAL_WAIT},
    "seconds to wait for jobs that use a model; then 409",
)  # fmt: skip
ALL = Param("all", "query", {"type": "boolean"}, "the whole catalog, not only what is on disk")


def wants_all(request: web.Request) -> bool:
    return request.query.get("all", "").lower() in ("true", "1", "yes")


@endpoint(answers.ModelList, params=(ALL,))
@compressed
async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models: the default model, then what is on disk; `?all=true` the whole catalog."""
    app, settings, every = request.app, _settings(request), wants_all(request)

    def views() -> list[dict[str, Any]]:
        survey = Survey(app[SERVICE].catalog, app[SERVICE].settings)
        return [_view(app, entry.id, survey, settings) for entry in app[SERVICE].listed(every)]

    data = await asyncio.to_thread(views)
    return _tagged(answers.ModelList, {"object": "list", "data": data}, data)


@endpoint(answers.ModelObject, errors=(ModelNotFound,))
@compressed
async def get_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}: one of them; a name of the hub, ORG/NAME, needs no escaped slash."""
    return await _answer(request)


@endpoint(answers.ModelObject, errors=(*MODEL, UnsupportedOperation, *ADMIN), status=202)
@admins_only
async def load_model(request: web.Request) -> web.Response:
    """POST /v1/models/{id}/load: load it as soon as no job waits; poll the model's state."""
    entry = request.app[SERVICE].catalog.get(request.match_info["id"])
    request.app[SERVICE].catalog.require_within_reach(entry)
    request.app[SERVICE].scheduler.want(entry)
    return await _answer(request, 202)


@endpoint(answers.ModelObject, errors=(ModelNotFound, *ADMIN), status=202)
@admins_only
async def unload_model(request: web.Request) -> web.Response:
    """POST /v1/models/{id}/unload: free its memory as soon as no job waits."""
    scheduler, catalog, name = (
        request.app[SERVICE].scheduler,
        request.app[SERVICE].catalog,
        request.match_info["id"],
    )
    for entry in [catalog.get(name)] if ":" in name else catalog.quants(name):
        await scheduler.unload(entry)
    return await _answer(request, 202)


@endpoint(answers.MemoryFreed, errors=(ModelBusy, InvalidRequest, *ADMIN), params=(WAIT,))
@admins_only
async def yield_memory(request: web.Request) -> web.Response:
    """POST /v1/models/yield: unload every model, as soon as no job needs it; the next job loads its own."""
    wait = request.query.get("wait", str(USUAL_WAIT))
    if not wait.isdecimal() or len(wait) > 4 or int(wait) > LONGEST_WAIT:
        raise InvalidRequest(f"wait: must be a number from 0 to {LONGEST_WAIT}", param="wait")
    service = request.app[SERVICE]
    freed = await memory.give_back(service.scheduler, service.catalog, int(wait))
    body = {"object": "models.yield", "unloaded": [entry.name for entry in freed]}
    return reply(answers.MemoryFreed, body)


async def _answer(request: web.Request, status: int = 200) -> web.Response:
    named = request.match_info
    name = named.get("id") or f"{named['org']}/{named['name']}"
    request.app[SERVICE].catalog.get(name)  # a name that is none ends here
    survey = await asyncio.to_thread(Survey, request.app[SERVICE].catalog, request.app[SERVICE].settings)
    view = _view(request.app, name, survey, _settings(request))
    if status != 200:
        return reply(answers.ModelObject, view, status=status)
    return _tagged(answers.ModelObject, view, [view])


def _tagged(model: type[BaseModel], body: dict[str, Any], views: list[dict[str, Any]]) -> web.Response:
    """Its tag leaves out how much memory is free, which is another figure at each look."""
    steady = [{**view, "meta": {**view["meta"], "memory": None}} for view in views]
    answer = reply(model, body)
    answer.etag = tag_of(json.dumps(steady).encode())
    return answer


def _settings(request: web.Request) -> Settings:
    """With the limits of the caller."""
    return within(request.app[SERVICE].settings, caller_of(request).bounds)


def _view(app: web.Application, name: str, survey: Survey, settings: Settings) -> dict[str, Any]:
    entry = app[SERVICE].catalog.get(name)
    traits = entry.traits
    bounds = Bounds.of(entry, settings)
    entries = app[SERVICE].catalog.quants(entry.id)
    meant = [entry] if ":" in name else entries  # of an ID alone, any may be in memory
    quants = [survey.quant(each) for each in entries]
    best = best_of(quants)
    defaults = entry.defaults.model_dump()
    steps = min(defaults["steps"], bounds.steps)
    able = app[SERVICE].abilities
    schedules = [name for name in able.schedules if name != "ays" or traits.ays]
    return {
        "id": app[SERVICE].name_of(entry),
        "object": "model",
        "created": 0,
        "owned_by": "gguf_imagegen",
        "model_type": "image",  # Xinference's client asks for it
        "meta": {
            "aliases": list(entry.aliases),
            "description": entry.description,
            "examples": list(entry.examples),
            "state": _state(app, meant),
            "error": _error(app, meant),
            "tuned": _tuned(app, meant),
            "engine": entry.engine.given,
            "default": entry.id == app[SERVICE].default.id,
            "quants": [_quant(each, told) for each, told in zip(entries, quants, strict=True)],
            "best": best.name,
            "memory": best.memory and asdict(best.memory),
            "download_bytes": best.download_bytes,
            "pullable": bool(entry.sources) and not entry.unsupported,
            "pulling": [pull.model for pull in app[PULLS].named(entry.id) if not pull.ended],
            "pull_error": app[PULLS].fault(entry.id),
            "gated": best.gated,
            "links": sorted({source.url for source in entry.sources.values()}),
            "unsupported": entry.unsupported or None,
            "size_on_disk": app[SERVICE].catalog.size_on_disk(entry),
            "family": entry.family,
            "licence": entry.licence,
            "capabilities": list(entry.capabilities),
            "edit_mode": entry.edit_mode,
            "distilled_guidance": traits.distilled_guidance,
            "defaults": {**defaults, "steps": steps, "size": "x".join(map(str, entry.defaults.size))},
            "step_caches": traits.step_caches,
            "decoders": entry.decoders,
            "limits": {
                "min_side": settings.min_side,
                "min_pixels": settings.min_pixels,
                "min_steps": settings.min_steps,
                "max_side": bounds.side,
                "max_pixels": bounds.pixels,
                "max_steps": bounds.steps,
                "max_n": settings.max_images,
                "max_prompt_chars": settings.max_prompt_chars,
                "size_multiple": traits.multiple,
                "max_images": bounds.images,
                "max_input_pixels": settings.max_input_pixels,
                "max_cfg_scale": bounds.cfg_scale,
            },
            "quality": dict(entry.quality),
            "samplers": list(able.samplers),
            "schedules": schedules,
            "variations": able.variations,
            "previews": ["proj"] * traits.latent_preview + ["tae"] * ("taesd" in entry.files) + ["vae"],
        },
    }


def _error(app: web.Application, meant: list[Entry]) -> object:
    errors = app[SERVICE].pool.errors
    return next((errors[each.name].body()["error"] for each in meant if each.name in errors), None)


def _quant(entry: Entry, told: Quant) -> dict[str, Any]:
    return {"quant": entry.quant, **{name: value for name, value in vars(told).items() if name != "memory"}}


def _tuned(app: web.Application, meant: list[Entry]) -> dict[str, Any] | None:
    every = (app[SERVICE].pool.tuned(each) for each in meant)
    return next((dict(options.given) for options in every if options is not None), None)


def _state(app: web.Application, meant: list[Entry]) -> str:
    if meant[0].unsupported:
        return "unsupported"
    pool = app[SERVICE].pool
    if any(map(pool.loads, meant)):  # asked first: in a thread, the load may end between the two
        return "loading"
    if any(map(pool.holds, meant)):
        return "loaded"
    if any(not pull.ended for pull in app[PULLS].named(meant[0].id)):
        return "pulling"
    return "ready" if any(map(app[SERVICE].catalog.within_reach, meant)) else "absent"


@endpoint(answers.RequestProgress, errors=(ModelNotFound,))
async def load_progress(request: web.Request) -> web.Response:
    """GET /v1/models/{id}/progress: how far its load is, 0 to 1."""
    pool = request.app[SERVICE].pool
    entry = request.app[SERVICE].model(request.match_info["id"])
    if pool.holds(entry):
        return reply(answers.RequestProgress, {"progress": 1.0})
    going = pool.loading if pool.loads(entry) else None
    share = going.done / going.total if going is not None and going.total else 0.0
    return reply(answers.RequestProgress, {"progress": round(share, 4)})
