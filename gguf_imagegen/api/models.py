"""The models: OpenAI's list with everything that a generic client must know to ask for a picture."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from aiohttp import web

from gguf_imagegen.api.keys import CATALOG, DEFAULT_MODEL, SCHEDULER, SETTINGS
from gguf_imagegen.api.pull import PULLS
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.fit import Available, available
from gguf_imagegen.catalog.room import quant_of, room_for
from gguf_imagegen.schema.request import SAMPLERS, SCHEDULES


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models."""
    app, free = request.app, await asyncio.to_thread(available)
    data = await asyncio.to_thread(lambda: [_view(app, entry, free) for entry in app[CATALOG].entries])
    return web.json_response({"object": "list", "data": data})


async def get_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}."""
    return await _answer(request)


async def load_model(request: web.Request) -> web.Response:
    """POST /v1/models/{id}/load: load it as soon as no job waits; poll the model's state."""
    entry = request.app[CATALOG].get(request.match_info["id"])
    request.app[CATALOG].require_on_disk(entry)
    request.app[SCHEDULER].want(entry)
    return await _answer(request, 202)


async def unload_model(request: web.Request) -> web.Response:
    """POST /v1/models/{id}/unload: free its memory as soon as no job waits."""
    entry = request.app[CATALOG].get(request.match_info["id"])
    if request.app[SCHEDULER].resident.holds(entry):
        request.app[SCHEDULER].unload(entry)
    return await _answer(request, 202)


async def _answer(request: web.Request, status: int = 200) -> web.Response:
    entry = request.app[CATALOG].get(request.match_info["id"])
    free = await asyncio.to_thread(available)
    return web.json_response(_view(request.app, entry, free), status=status)


def _view(app: web.Application, entry: Entry, free: Available) -> dict[str, Any]:
    settings, traits = app[SETTINGS], entry.traits
    defaults = entry.defaults.model_dump()
    schedules = [name for name in SCHEDULES if name != "ays" or traits.ays]
    return {
        "id": entry.id,
        "object": "model",
        "created": 0,
        "owned_by": "gguf_imagegen",
        "model_type": "image",  # Xinference's client asks for it
        "meta": {
            "aliases": list(entry.aliases),
            "description": entry.description,
            "state": _state(app, entry),
            "error": _error(app, entry),
            "tuned": _tuned(app, entry),
            "default": entry.id == app[DEFAULT_MODEL].id,
            "quants": [_quant(app, each, free) for each in app[CATALOG].quants(entry.id)],
            "memory": _memory(app, entry, free),
            "pullable": bool(entry.sources) and not entry.unsupported,
            "pulling": [pull.entry.name for pull in app[PULLS].named(entry.id) if not pull.ended],
            "gated": any(source.gated for source in entry.sources.values()),
            "links": sorted({source.url for source in entry.sources.values()}),
            "unsupported": entry.unsupported or None,
            "size_on_disk": app[CATALOG].size_on_disk(entry),
            "family": entry.family,
            "licence": entry.licence,
            "capabilities": list(entry.capabilities),
            "edit_mode": entry.edit_mode,
            "distilled_guidance": traits.distilled_guidance,
            "defaults": {**defaults, "size": "x".join(map(str, entry.defaults.size))},
            "step_caches": traits.step_caches,
            "decoders": entry.decoders,
            "limits": {
                "max_side": min(entry.limits.max_side, traits.max_side, settings.max_side),
                "max_pixels": min(entry.limits.max_pixels, settings.max_pixels),
                "max_steps": min(entry.limits.max_steps, settings.max_steps),
                "max_n": settings.max_images,
                "max_prompt_chars": settings.max_prompt_chars,
                "size_multiple": traits.multiple,
                "max_images": entry.limits.references if entry.edit_mode == "reference" else 1,
                "max_cfg_scale": entry.limits.cfg_scale,
            },
            "quality": dict(entry.quality),
            "samplers": list(SAMPLERS),
            "schedules": schedules,
            "previews": ["proj"] * traits.latent_preview + ["tae"] * ("taesd" in entry.files) + ["vae"],
        },
    }


def _error(app: web.Application, entry: Entry) -> object:
    error = app[SCHEDULER].resident.errors.get(entry.name)
    return error.body()["error"] if error else None


def _quant(app: web.Application, entry: Entry, free: Available) -> dict[str, Any]:
    return {"quant": entry.quant, **asdict(quant_of(app[CATALOG], entry, app[SETTINGS], free))}


def _memory(app: web.Application, entry: Entry, free: Available) -> dict[str, Any] | None:
    room = room_for(app[CATALOG], entry, app[SETTINGS], free)
    return asdict(room) if room else None


def _tuned(app: web.Application, entry: Entry) -> dict[str, Any] | None:
    options = app[SCHEDULER].resident.tuned(entry)
    return None if options is None else dict(options.given)


def _state(app: web.Application, entry: Entry) -> str:
    if entry.unsupported:
        return "unsupported"
    resident = app[SCHEDULER].resident
    if resident.loads(entry):  # asked first: in a thread, the load may end between the two
        return "loading"
    if resident.holds(entry):
        return "loaded"
    if any(not pull.ended for pull in app[PULLS].named(entry.id)):
        return "pulling"
    return "ready" if app[CATALOG].on_disk(entry) else "absent"
