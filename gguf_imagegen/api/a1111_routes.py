"""The routes of AUTOMATIC1111's API, stable-diffusion-webui's modules/api/api.py."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler

from gguf_imagegen.api import a1111, a1111_extras, a1111_lists, a1111_progress

BASE = "/sdapi/v1/"
GET: Mapping[str, Handler] = {
    "progress": a1111_progress.progress,
    "options": a1111_lists.get_options,
    "cmd-flags": a1111_lists.cmd_flags,
    "sd-models": a1111_lists.sd_models,
    "samplers": a1111_lists.samplers,
    "schedulers": a1111_lists.schedulers,
    "loras": a1111_lists.loras,
    "upscalers": a1111_lists.upscalers,
    "latent-upscale-modes": a1111_lists.latent_upscale_modes,
    "memory": a1111_lists.memory,
    "scripts": a1111_lists.scripts,
    "embeddings": a1111_lists.embeddings,
    "script-info": a1111_lists.nothing,
    "extensions": a1111_lists.nothing,
    "sd-vae": a1111_lists.nothing,
    "sd-modules": a1111_lists.nothing,
    "hypernetworks": a1111_lists.nothing,
    "face-restorers": a1111_lists.nothing,
    "prompt-styles": a1111_lists.nothing,
    "realesrgan-models": a1111_lists.nothing,
}
POST: Mapping[str, Handler] = {
    "txt2img": a1111.txt2img,
    "img2img": a1111.img2img,
    "interrupt": a1111_progress.interrupt,
    "skip": a1111_progress.skip,
    "options": a1111_lists.set_options,
    "unload-checkpoint": a1111_lists.unload_checkpoint,
    "reload-checkpoint": a1111_lists.reload_checkpoint,
    "refresh-checkpoints": a1111_lists.done,
    "refresh-loras": a1111_lists.done,
    "refresh-vae": a1111_lists.done,
    "extra-single-image": a1111_extras.extra_single_image,
    "extra-batch-images": a1111_extras.extra_batch_images,
    "png-info": a1111_extras.png_info,
    "interrogate": a1111_extras.interrogate,
}
ROUTES = [
    *(web.get(BASE + name, handler) for name, handler in GET.items()),
    *(web.post(BASE + name, handler) for name, handler in POST.items()),
    web.post("/internal/progress", a1111_progress.internal_progress),
]
