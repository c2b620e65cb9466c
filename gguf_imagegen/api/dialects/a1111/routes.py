"""The routes of AUTOMATIC1111's API, stable-diffusion-webui's modules/api/api.py."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler

from gguf_imagegen.api.dialect import Dialect
from gguf_imagegen.api.dialects.a1111 import controlnet, detect, extras, lists, pictures, progress, styles
from gguf_imagegen.api.dialects.a1111.request import NO_EFFECT, NO_EFFECT_ON_HIRES, SAME
from gguf_imagegen.api.openapi.schemas import Schema, without_effect

BASE = "/sdapi/v1/"
GET: Mapping[str, Handler] = {
    "progress": progress.progress,
    "options": lists.get_options,
    "cmd-flags": lists.cmd_flags,
    "sd-models": lists.sd_models,
    "samplers": lists.samplers,
    "schedulers": lists.schedulers,
    "loras": lists.loras,
    "upscalers": lists.upscalers,
    "latent-upscale-modes": lists.latent_upscale_modes,
    "memory": lists.memory,
    "scripts": lists.scripts,
    "embeddings": lists.embeddings,
    "script-info": lists.nothing,
    "extensions": lists.nothing,
    "sd-vae": lists.nothing,
    "sd-modules": lists.nothing,
    "hypernetworks": lists.nothing,
    "face-restorers": lists.nothing,
    "prompt-styles": styles.prompt_styles,
    "realesrgan-models": lists.nothing,
}
POST: Mapping[str, Handler] = {
    "txt2img": pictures.txt2img,
    "img2img": pictures.img2img,
    "interrupt": progress.interrupt,
    "skip": progress.skip,
    "options": lists.set_options,
    "unload-checkpoint": lists.unload_checkpoint,
    "reload-checkpoint": lists.reload_checkpoint,
    "refresh-checkpoints": lists.done,
    "refresh-loras": lists.done,
    "refresh-vae": lists.done,
    "refresh-embeddings": lists.done,
    "extra-single-image": extras.extra_single_image,
    "extra-batch-images": extras.extra_batch_images,
    "png-info": extras.png_info,
    "interrogate": extras.interrogate,
}
ROUTES = [
    *(web.get(BASE + name, handler) for name, handler in GET.items()),
    *(web.post(BASE + name, handler) for name, handler in POST.items()),
    web.post("/internal/progress", progress.internal_progress),
    web.get("/controlnet/settings", controlnet.settings),
    web.get("/controlnet/version", controlnet.version),
    web.get("/controlnet/model_list", controlnet.model_list),
    web.get("/controlnet/module_list", controlnet.module_list),
    web.post("/controlnet/detect", detect.detect),
]


def _describe(schemas: dict[str, Schema]) -> None:
    """Keys that are the same in an image request, and those without effect."""
    own, image = schemas["A1111Request"]["properties"], schemas["ImageRequest"]["properties"]
    own |= {name: image[name] for name in SAME if name not in own}
    own |= without_effect({*NO_EFFECT, *NO_EFFECT_ON_HIRES} - own.keys())


DIALECT = Dialect(
    "a1111",
    "AUTOMATIC1111",
    ROUTES,
    roots=("/sdapi/", "/internal/", "/controlnet/"),
    auth=("bearer", "azure", "basic"),
    describe=_describe,
    prepare=detect.prepare,
)
