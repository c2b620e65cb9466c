"""What AUTOMATIC1111 clients look up before they ask for a picture: models, options, names of everything.

Shapes are those of stable-diffusion-webui's modules/api/api.py and modules/api/models.py. Files are named by
their bare names, never by a path.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
from aiohttp import web
from pydantic import BaseModel

from gguf_imagegen.api import answers
from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import admins_only, require_admin
from gguf_imagegen.api.dialects.a1111.checkpoints import (
    find_model,
    main_role,
    on_disk,
    sha256_of,
    title_of,
    use_by_default,
)
from gguf_imagegen.api.dialects.a1111.names import SAMPLERS, SCHEDULES
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.models import ALL, wants_all
from gguf_imagegen.api.openapi.contract import ADMIN, MODEL, READING, endpoint
from gguf_imagegen.api.packing import compressed
from gguf_imagegen.api.reply import reply
from gguf_imagegen.machine.memory import available
from gguf_imagegen.planning.addons import names_in
from gguf_imagegen.planning.embeddings import listed_embeddings
from gguf_imagegen.vocabulary.errors import InvalidRequest

PIXEL_UPSCALERS = ("None", "Lanczos", "Nearest")
"""Upscalers that need no file."""
LATENT_MODES = (
    "Latent", "Latent (antialiased)", "Latent (bicubic)", "Latent (bicubic antialiased)", "Latent (nearest)",
    "Latent (nearest-exact)",
)  # fmt: skip


class OptionsRequest(BaseModel):
    """Other options are ignored."""

    sd_model_checkpoint: str | None = None


# -- models -------------------------------------------------------------------------------------------


@endpoint(answers.ObjectList, params=(ALL,))
@compressed
async def sd_models(request: web.Request) -> web.Response:
    """GET /sdapi/v1/sd-models: the default model, then what is on disk; `?all=true` the whole catalog."""
    catalog, default = request.app[SERVICE].catalog, request.app[SERVICE].default
    entries = list(on_disk(catalog))
    if wants_all(request):
        here = {entry.name for entry in entries}
        every = [each for entry in catalog.entries for each in catalog.quants(entry.id)]
        entries += [each for each in every if each.name not in here and each.files and not each.unsupported]
    entries.sort(key=lambda entry: entry.name != default.name)
    return reply(
        answers.ObjectList,
        [
            {
                "title": title_of(entry),
                "model_name": entry.name,
                "hash": (sha256_of(entry) or "")[:10] or None,
                "sha256": sha256_of(entry),
                "filename": entry.files[main_role(entry)].name,
                "config": None,
            }
            for entry in entries
        ],
    )


@endpoint()
async def get_options(request: web.Request) -> web.Response:
    """GET /sdapi/v1/options: the few options that this server has."""
    entry = request.app[SERVICE].default
    return reply(
        answers.AnyObject,
        {
            "samples_format": "png",
            "sd_model_checkpoint": title_of(entry),
            "sd_checkpoint_hash": sha256_of(entry) or "",
            "sd_vae": "Automatic",
            "CLIP_stop_at_last_layers": 1,
        },
    )


@endpoint(answers.Nothing, request=OptionsRequest, errors=(*READING, *MODEL, *ADMIN))
async def set_options(request: web.Request) -> web.Response:
    """POST /sdapi/v1/options: `sd_model_checkpoint` switches the default model; all else is ignored."""
    name = (await read_body(request)).get("sd_model_checkpoint")
    if name is not None and not isinstance(name, str):
        raise InvalidRequest("sd_model_checkpoint: must be a text", param="sd_model_checkpoint")
    if name:
        require_admin(request)
        use_by_default(request.app, find_model(request.app[SERVICE].catalog, name))
    return reply(answers.Nothing, None)


@endpoint(errors=ADMIN)
@admins_only
async def unload_checkpoint(request: web.Request) -> web.Response:
    """POST /sdapi/v1/unload-checkpoint: free the memory of all models as soon as no job waits."""
    for entry in request.app[SERVICE].pool.entries:
        await request.app[SERVICE].scheduler.unload(entry)
    return reply(answers.AnyObject, {})


@endpoint(errors=(*MODEL, *ADMIN))
@admins_only
async def reload_checkpoint(request: web.Request) -> web.Response:
    """POST /sdapi/v1/reload-checkpoint: load the default model as soon as no job waits."""
    use_by_default(request.app, request.app[SERVICE].default)
    return reply(answers.AnyObject, {})


# -- names --------------------------------------------------------------------------------------------


@endpoint(answers.ObjectList)
async def samplers(request: web.Request) -> web.Response:
    """GET /sdapi/v1/samplers."""
    return reply(
        answers.ObjectList,
        [
            {"name": label, "aliases": sorted({ours, *aliases} - {label}), "options": {}}
            for ours in request.app[SERVICE].abilities.samplers
            for label, aliases in [SAMPLERS.get(ours, (ours, ()))]
        ],
    )


@endpoint(answers.ObjectList)
async def schedulers(request: web.Request) -> web.Response:
    """GET /sdapi/v1/schedulers."""
    able = request.app[SERVICE].abilities.schedules
    names = [("automatic", "Automatic", ()), *(each for ours, each in SCHEDULES.items() if ours in able)]
    rest = {"default_rho": -1, "need_inner_model": False}
    return reply(
        answers.ObjectList,
        [{"name": name, "label": label, "aliases": list(aliases), **rest} for name, label, aliases in names],
    )


@endpoint(answers.ObjectList)
async def loras(request: web.Request) -> web.Response:
    """GET /sdapi/v1/loras: names that prompts and the field `lora` may use."""
    names = await asyncio.to_thread(names_in, request.app[SERVICE].settings.lora_dir, "lora")
    return reply(
        answers.ObjectList, [{"name": name, "alias": name, "path": name, "metadata": {}} for name in names]
    )


@endpoint(answers.ObjectList)
async def upscalers(request: web.Request) -> web.Response:
    """GET /sdapi/v1/upscalers: built-in ones, and the files of --upscaler-dir."""
    names = await asyncio.to_thread(names_in, request.app[SERVICE].settings.upscaler_dir, "upscaler")
    items = [(name, None) for name in PIXEL_UPSCALERS] + [(name, name) for name in names]
    return reply(
        answers.ObjectList,
        [
            {"name": name, "model_name": model, "model_path": None, "model_url": None, "scale": 4}
            for name, model in items
        ],
    )


@endpoint(answers.ObjectList)
async def latent_upscale_modes(request: web.Request) -> web.Response:
    """GET /sdapi/v1/latent-upscale-modes."""
    return reply(answers.ObjectList, [{"name": name} for name in LATENT_MODES])


@endpoint()
async def cmd_flags(request: web.Request) -> web.Response:
    """GET /sdapi/v1/cmd-flags: that there is an API and no Gradio."""
    return reply(answers.AnyObject, {"api": True, "nowebui": True})


@endpoint()
async def memory(request: web.Request) -> web.Response:
    """GET /sdapi/v1/memory: bytes of main memory, and free bytes of the first GPU."""
    free = await asyncio.to_thread(available)
    total = psutil.virtual_memory().total
    ram = {"free": free.ram, "used": total - free.ram, "total": total}
    cuda: dict[str, Any] = {"error": "unavailable"}
    if free.vram is not None:
        cuda = {"system": {"free": free.vram}}
    return reply(answers.AnyObject, {"ram": ram, "cuda": cuda})


@endpoint()
async def scripts(request: web.Request) -> web.Response:
    """GET /sdapi/v1/scripts: none."""
    return reply(answers.AnyObject, {"txt2img": [], "img2img": []})


@endpoint()
async def embeddings(request: web.Request) -> web.Response:
    """GET /sdapi/v1/embeddings: those that fit the default model, and the others."""
    service = request.app[SERVICE]
    found = await asyncio.to_thread(listed_embeddings, service.settings.embedding_dir)
    loaded, skipped = dict[str, object](), dict[str, object]()
    for each in found:
        misfit = each.misfit(service.default.family)
        (skipped if misfit else loaded)[each.name] = {
            "step": None,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
            "shape": each.width,
            "vectors": each.vectors,
        }
    return reply(answers.AnyObject, {"loaded": loaded, "skipped": skipped})


@endpoint(answers.ObjectList)
async def nothing(request: web.Request) -> web.Response:
    """Lists of things that this server does not have."""
    return reply(answers.ObjectList, [])


@endpoint(answers.Nothing)
async def done(request: web.Request) -> web.Response:
    """POST refresh-…: folders are looked at with every request."""
    return reply(answers.Nothing, None)
