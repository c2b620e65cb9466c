"""The models: OpenAI's list with everything that a generic client must know to ask for a picture."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gguf_imagegen.api.keys import CATALOG, DEFAULT_MODEL, SCHEDULER, SETTINGS
from gguf_imagegen.api.pull import PULLS
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.schema.request import SAMPLERS, SCHEDULES


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models."""
    data = [_view(request.app, entry) for entry in request.app[CATALOG].entries]
    return web.json_response({"object": "list", "data": data})


async def get_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}."""
    return web.json_response(_view(request.app, request.app[CATALOG].get(request.match_info["id"])))


async def load_model(request: web.Request) -> web.Response:
    """POST /v1/models/{id}/load: load it as soon as no job waits; poll the model's state."""
    entry = request.app[CATALOG].get(request.match_info["id"])
    request.app[CATALOG].require_on_disk(entry)
    request.app[SCHEDULER].want(entry)
    return web.json_response(_view(request.app, entry), status=202)


async def unload_model(request: web.Request) -> web.Response:
    """POST /v1/models/{id}/unload: free its memory as soon as no job waits."""
    entry = request.app[CATALOG].get(request.match_info["id"])
    if request.app[SCHEDULER].resident.holds(entry):
        request.app[SCHEDULER].unload(entry)
    return web.json_response(_view(request.app, entry), status=202)


def _view(app: web.Application, entry: Entry) -> dict[str, Any]:
    settings, traits = app[SETTINGS], entry.traits
    defaults = entry.defaults.model_dump()
    schedules = [name for name in SCHEDULES if name != "ays" or traits.ays]
    return {
        "id": entry.id,
        "object": "model",
        "created": 0,
        "owned_by": "gguf_imagegen",
        "meta": {
            "aliases": list(entry.aliases),
            "description": entry.description,
            "state": _state(app, entry),
            "default": entry.id == app[DEFAULT_MODEL].id,
            "quants": [
                {"name": each.name, "quant": each.quant, "on_disk": app[CATALOG].on_disk(each)}
                for each in app[CATALOG].quants(entry.id)
            ],
            "size_on_disk": app[CATALOG].size_on_disk(entry),
            "family": entry.family,
            "licence": entry.licence,
            "capabilities": list(entry.capabilities),
            "edit_mode": entry.edit_mode,
            "defaults": {**defaults, "size": "x".join(map(str, entry.defaults.size))},
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


def _state(app: web.Application, entry: Entry) -> str:
    if entry.unsupported:
        return "unsupported"
    resident = app[SCHEDULER].resident
    if resident.holds(entry):
        return "loaded"
    if resident.loading is not None and resident.loading.what == entry.id:
        return "loading"
    if any(not pull.ended for pull in app[PULLS].named(entry.id)):
        return "pulling"
    return "ready" if app[CATALOG].on_disk(entry) else "absent"
