"""AUTOMATIC1111's API (stable-diffusion-webui, modules/api/api.py): pictures."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from aiohttp import web

from gguf_imagegen import __version__
from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import caller_of
from gguf_imagegen.api.dialects.a1111 import checkpoints
from gguf_imagegen.api.dialects.a1111.answers import A1111Answer
from gguf_imagegen.api.dialects.a1111.inputs import input_images, memory_of
from gguf_imagegen.api.dialects.a1111.names import sampler_label, schedule_label
from gguf_imagegen.api.dialects.a1111.progress import timestamp
from gguf_imagegen.api.dialects.a1111.request import A1111Request, Translated, translate
from gguf_imagegen.api.dialects.a1111.styles import read_styles, with_styles
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import PICTURE_TEXT, Endpoint, picture_contract, with_contract
from gguf_imagegen.api.reply import reply
from gguf_imagegen.api.submit import accepted, begin, finish, pictures, prefers_async
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.jobs.finish import describe
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.planning.addons import names_in
from gguf_imagegen.planning.warnings import few
from gguf_imagegen.service import Service
from gguf_imagegen.vocabulary.errors import Cancelled, ModelNotFound, UnsupportedOperation

PICTURES = {"init_images", "mask", "extra_images", "alwayson_scripts"}
"""Keys that are not echoed, unless `include_init_images` asks for them."""
MAX_ECHO_DEPTH = 16


def _pictures_endpoint(*required: str, **example: Any) -> Callable[[Endpoint], Endpoint]:
    return with_contract(picture_contract(A1111Answer, A1111Request, required=required, example=example))


@_pictures_endpoint("prompt", prompt="a lovely cat", width=64, height=64, steps=2)
async def txt2img(request: web.Request) -> web.Response:
    """POST /sdapi/v1/txt2img."""
    return await _make(request, img2img=False)


@_pictures_endpoint("init_images", prompt="a dog", init_images=[PICTURE_TEXT], denoising_strength=0.5)
async def img2img(request: web.Request) -> web.Response:
    """POST /sdapi/v1/img2img."""
    return await _make(request, img2img=True)


async def _make(request: web.Request, *, img2img: bool) -> web.Response:
    app = request.app
    app[SERVICE].check_room(caller_of(request))
    data = await read_body(request)
    known = await asyncio.to_thread(names_in, app[SERVICE].settings.lora_dir, "lora")
    own = app[SERVICE].abilities.samplers
    styles = await asyncio.to_thread(read_styles, app[SERVICE].settings.styles)
    styled, strange = with_styles(data, styles)
    told = await asyncio.to_thread(translate, styled, img2img=img2img, loras=known, samplers=own)
    told.warnings.extend(strange)
    wanted, fields = told.wanted, told.fields
    entry = _model(app[SERVICE], wanted, told.warnings)
    if wanted.extra_images and entry.edit_mode != "reference":
        raise UnsupportedOperation(f"extra_images: {entry.id} takes no references", param="extra_images")
    fields |= {"model": entry.name, "request_id": wanted.force_task_id or None, **_preview(entry)}
    if not wanted.include_init_images:
        data = {**data, **dict.fromkeys(PICTURES & data.keys())}
    most = app[SERVICE].settings.max_input_pixels
    memory = await asyncio.to_thread(memory_of, wanted, img2img=img2img, max_pixels=most)
    fields |= await app[SERVICE].pixels.in_turn(
        memory, partial(input_images, wanted, img2img=img2img, max_pixels=most)
    )
    told = replace(told, wanted=wanted.without_files())
    work = await begin(request, fields, told.operation, prompt_needed=False)
    del fields, wanted  # with the pictures in them, while the job waits and runs
    wanted = told.wanted
    if wanted.checkpoint and not wanted.override_settings_restore_afterwards:
        if caller_of(request).admin:
            checkpoints.use_by_default(app, entry)
        else:
            told.warnings.append("override_settings: the default model stays; an admin's key may change it")
    if prefers_async(request):
        return accepted(request, work.job)
    try:
        made = await finish(request, work)
    except Cancelled:
        if app[SERVICE].scheduler.draining:
            raise
        made = await asyncio.to_thread(pictures, app, work.job)  # what was finished before the interrupt
    body = await asyncio.to_thread(_answer, work.job, data, told, made, app[SERVICE].results.keeps)
    return reply(A1111Answer, body)


def _model(service: Service, wanted: A1111Request, warnings: list[str]) -> Entry:
    """The checkpoint by any of its names, else what such a name means to every dialect.

    An unknown `model` is no error, as sd.cpp's own server draws with what it has: clients send one that was
    chosen of another server's menu.
    """
    name = wanted.checkpoint or wanted.model
    if not name:
        return service.default
    try:
        return checkpoints.find_model(service.catalog, name)
    except ModelNotFound:
        return service.meant(name, warnings, any_model=not wanted.checkpoint)


def _preview(entry: Entry) -> dict[str, Any]:
    """A preview of every step where it costs next to nothing, for `current_image`."""
    cheap = entry.traits.latent_preview or "taesd" in entry.files
    return {"stream_options": {"preview": True}} if cheap else {}


def _answer(
    job: Job, data: Mapping[str, Any], told: Translated, made: list[bytes], kept: bool
) -> dict[str, Any]:
    wanted = told.wanted
    warnings = [*few(told.warnings), *job.warnings]
    if wanted.save_images and not kept:
        warnings.append("save_images: the server keeps no pictures; see --keep-pictures, --output-dir")
    return {
        "images": [base64.b64encode(each).decode("ascii") for each in made] if wanted.send_images else [],
        "parameters": {key: plain(value) for key, value in data.items()},
        "info": json.dumps(_info(job, wanted)),
        "warnings": warnings,
    }


def plain(value: Any, depth: int = 0) -> Any:
    """JSON that every reader takes: no NaN, no infinity, no depth without end."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict | list) and depth >= MAX_ECHO_DEPTH:
        return None
    if isinstance(value, dict):
        return {key: plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in value]
    return None if isinstance(value, bytes) else value


def _info(job: Job, wanted: A1111Request) -> dict[str, Any]:
    """What `Processed.js` of modules/processing.py tells. The prompt is the one sent, with its LoRA tags."""
    plan, spec = job.plan, job.plan.spec
    strength = spec.strength if spec.init_image else None
    subseeds = [each.seed if (each := spec.variation_of(index)) else -1 for index in range(spec.n)]
    sha256 = checkpoints.sha256_of(plan.entry) or ""
    return {
        "prompt": wanted.prompt,
        "all_prompts": [wanted.prompt] * spec.n,
        "negative_prompt": spec.negative_prompt,
        "all_negative_prompts": [spec.negative_prompt] * spec.n,
        "seed": spec.seed,
        "all_seeds": [spec.seed_of(index) for index in range(spec.n)],
        "subseed": subseeds[0],
        "all_subseeds": subseeds,
        "subseed_strength": spec.variation.strength if spec.variation else 0,
        "width": plan.width,
        "height": plan.height,
        "sampler_name": sampler_label(spec.sampler),
        "cfg_scale": spec.cfg_scale,
        "steps": spec.steps,
        "batch_size": wanted.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": plan.entry.name,
        "sd_model_hash": sha256[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": 0,
        "seed_resize_from_h": 0,
        "denoising_strength": spec.hires.denoising_strength if spec.hires else strength,
        "extra_generation_params": {"Schedule type": schedule_label(spec.schedule)},
        "index_of_first_image": 0,
        "infotexts": [describe(plan, image.index) for image in job.images],
        "styles": [],
        "job_timestamp": timestamp(job),
        "clip_skip": max(1, spec.clip_skip),
        "is_using_inpainting_conditioning": plan.entry.edit_mode == "inpaint",
        "version": f"gguf_imagegen {__version__}",
    }
