"""From a request and a catalog entry to the complete specification: the one place that fills in defaults.

Everything that would kill or corrupt the engine is refused or put right here (`docs/engine.md`).
"""

from __future__ import annotations

import math
import re
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from gguf_imagegen import images
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.inspect import component_of, inspect_file
from gguf_imagegen.engine.protocol import GenerateSpec, Hires, Lora, PreviewMode, RawImage, SkipLayers
from gguf_imagegen.errors import InvalidRequest, InvalidSize, UnsupportedOperation
from gguf_imagegen.jobs.prompt import checked_prompt
from gguf_imagegen.schema.request import MAX_SEED, ImageRequest
from gguf_imagegen.settings import Settings

Operation = Literal["generation", "edit", "variation", "upscale"]
LEAST_SIDE = 64
OPENAI_QUALITIES = ("low", "medium", "high", "auto")


@dataclass(frozen=True)
class Plan:
    """A job to do: what the engine makes, and how its pixels become the answer.

    `width` x `height` is the size delivered, the centre of the engine's aligned size. `original` and
    `mask` (at the delivered size) restore the pixels that an edit must keep.
    """

    operation: Operation
    entry: Entry
    spec: GenerateSpec
    width: int
    height: int
    output_format: Literal["png", "jpeg", "webp"]
    output_compression: int | None
    quality: str
    keep_alive: float
    original: RawImage | None = field(repr=False)
    mask: RawImage | None = field(repr=False)
    partial_steps: tuple[int, ...]
    """Steps after which OpenAI's partial images are due."""
    warnings: tuple[str, ...]


def plan(
    request: ImageRequest, entry: Entry, settings: Settings, operation: Operation, warnings: list[str]
) -> Plan:
    """Complete and check a request. CPU-bound when there are images: call it in a thread."""
    notes = list(warnings)
    prompt = checked_prompt(request.prompt, "prompt", settings, notes)
    negative = checked_prompt(request.negative_prompt, "negative_prompt", settings, notes)
    if not prompt.strip() and operation != "variation":
        raise InvalidRequest("prompt: is required and must not be empty", param="prompt")
    if request.background == "transparent":
        raise UnsupportedOperation(
            f"background: {entry.id} cannot make transparent images; use 'opaque' or 'auto'",
            param="background",
        )
    n = request.n or 1
    if n > settings.max_images:
        raise InvalidRequest(f"n: at most {settings.max_images} images in one request", param="n")

    inputs = [
        images.decode(data, max_pixels=settings.max_input_pixels, param="image") for data in request.image
    ]
    width, height = _size(request, entry, settings, inputs)
    aligned = _align(width, entry.traits.multiple), _align(height, entry.traits.multiple)
    edit = _edit_inputs(request, entry, settings, operation, inputs, (width, height), aligned)
    steps = _steps(request, entry, settings)
    sampler = request.sampler or entry.defaults.sampler
    schedule = request.schedule or entry.defaults.schedule
    _check_schedule(schedule, steps, entry)
    cfg_scale, guidance = _guidance(request, entry)
    spec = GenerateSpec(
        prompt=prompt,
        negative_prompt=negative,
        width=aligned[0],
        height=aligned[1],
        steps=steps,
        sampler=sampler,
        schedule=schedule,
        cfg_scale=cfg_scale,
        image_cfg_scale=cfg_scale if request.image_cfg_scale is None else request.image_cfg_scale,
        guidance=guidance,
        seed=secrets.randbelow(MAX_SEED - n) if request.seed is None else request.seed,
        n=n,
        clip_skip=entry.defaults.clip_skip if request.clip_skip is None else request.clip_skip,
        eta=request.eta,
        flow_shift=entry.defaults.flow_shift if request.flow_shift is None else request.flow_shift,
        strength=entry.defaults.strength if request.strength is None else request.strength,
        vae_tiling=request.vae_tiling,
        init_image=edit.init,
        mask=edit.init_mask,
        ref_images=edit.references,
        control_image=_control(request, entry, settings, (width, height), aligned),
        control_strength=request.control_strength,
        loras=_loras(request, settings),
        hires=_hires(request, entry, settings, aligned, steps, schedule),
        skip_layers=_skip_layers(request),
        preview=_preview_mode(request, entry),
        preview_steps=(),
        preview_interval=settings.preview_interval,
    )
    if spec.hires is not None:
        width, height = spec.hires.width, spec.hires.height
    partial_steps = _partial_steps(spec, request.partial_images or 0)
    if partial_steps and not (request.stream_options and request.stream_options.preview):
        spec = replace(spec, preview_steps=partial_steps)
    return Plan(
        operation=operation,
        entry=entry,
        spec=spec,
        width=width,
        height=height,
        output_format=request.output_format or "png",
        output_compression=request.output_compression,
        quality=request.quality if request.quality in OPENAI_QUALITIES else "auto",
        keep_alive=settings.keep_alive if request.keep_alive is None else request.keep_alive,
        original=edit.original if spec.hires is None else None,
        mask=edit.mask if spec.hires is None else None,
        partial_steps=partial_steps,
        warnings=tuple(notes),
    )


# -- size ---------------------------------------------------------------------------------------------


def _size(
    request: ImageRequest, entry: Entry, settings: Settings, inputs: list[Image.Image]
) -> tuple[int, int]:
    max_side, max_pixels = _largest(entry, settings)
    if request.size:
        width, height = request.size
    elif request.width or request.height:
        width = request.width or request.height or 0
        height = request.height or request.width or 0
    elif inputs:
        budget = min(entry.defaults.size[0] * entry.defaults.size[1], max_pixels)
        width, height = images.edit_size(inputs[0].size, budget, entry.traits.multiple, max_side)
        return max(width, LEAST_SIDE), max(height, LEAST_SIDE)
    else:
        width, height = entry.defaults.size
    if min(width, height) < LEAST_SIDE:
        raise InvalidSize(
            f"size: {width}x{height} is too small; the least side is {LEAST_SIDE}", param="size"
        )
    if max(width, height) > max_side or width * height > max_pixels:
        raise InvalidSize(
            f"size: {width}x{height} is too large for {entry.id}; at most {max_side} a side and"
            f" {max_pixels} pixels in all",
            param="size",
        )
    if max(width, height) > 8 * min(width, height):
        raise InvalidSize(f"size: {width}x{height} is too narrow; at most 8:1", param="size")
    return width, height


def _largest(entry: Entry, settings: Settings) -> tuple[int, int]:
    """The longest side and the most pixels of an image, by family, model and server."""
    return (
        min(entry.limits.max_side, entry.traits.max_side),
        min(entry.limits.max_pixels, settings.max_pixels),
    )


def _align(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


# -- inputs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Edit:
    init: RawImage | None = None
    init_mask: RawImage | None = None
    references: tuple[RawImage, ...] = ()
    original: RawImage | None = None
    mask: RawImage | None = None


def _edit_inputs(
    request: ImageRequest,
    entry: Entry,
    settings: Settings,
    operation: Operation,
    inputs: list[Image.Image],
    size: tuple[int, int],
    aligned: tuple[int, int],
) -> _Edit:
    """Inputs at the aligned size; originals at the delivered size, to be put back over the kept pixels."""
    if not inputs:
        if operation != "generation":
            raise InvalidRequest("image: at least one image is needed", param="image")
        if request.mask is not None:
            raise InvalidRequest("mask: a mask needs an image to mask", param="mask")
        return _Edit()
    if entry.traits.edit_mode == "reference":
        if request.mask is not None:
            raise UnsupportedOperation(
                f"mask: {entry.id} edits whole images by reference and takes no mask", param="mask"
            )
        pictures = [images.to_raw(images.fit(images.flatten(picture), *aligned)) for picture in inputs]
        return _Edit(references=tuple(pictures))
    if len(inputs) > 1:
        raise UnsupportedOperation(
            f"image: {entry.id} edits one image at a time, {len(inputs)} were sent", param="image"
        )
    picture = inputs[0]
    masking = (
        images.decode(request.mask, max_pixels=settings.max_input_pixels, param="mask")
        if request.mask is not None
        else None
    )
    mask = images.mask_from(masking, picture, size)
    original = images.to_raw(images.fit(images.flatten(picture), *size))
    return _Edit(
        init=images.pad(original, *aligned),
        init_mask=images.pad(mask, *aligned) if mask else None,
        original=original if mask else None,
        mask=mask,
    )


def _control(
    request: ImageRequest, entry: Entry, settings: Settings, size: tuple[int, int], aligned: tuple[int, int]
) -> RawImage | None:
    if request.control is None:
        return None
    if "control_net" not in entry.files:
        raise UnsupportedOperation(f"control: {entry.id} is served without a ControlNet", param="control")
    picture = images.decode(request.control, max_pixels=settings.max_input_pixels, param="control")
    return images.pad(images.to_raw(images.fit(images.flatten(picture), *size)), *aligned)


def _loras(request: ImageRequest, settings: Settings) -> tuple[Lora, ...]:
    return tuple(Lora(_lora_path(lora.name, settings.lora_dir), lora.scale) for lora in request.lora)


def _lora_path(name: str, folder: Path | None) -> Path:
    """The file of this bare name inside the LoRA folder; nothing outside it can be named."""
    if folder is not None and re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        for suffix in ("", ".safetensors", ".gguf"):
            path = folder / f"{name}{suffix}"
            if path.suffix in (".safetensors", ".gguf") and path.is_file():
                if component_of(inspect_file(path)) != "lora":
                    raise InvalidRequest(f"lora: {name!r} is not a LoRA file", param="lora")
                return path
    here = folder.iterdir() if folder is not None and folder.is_dir() else ()
    have = sorted(path.stem for path in here if path.suffix in (".safetensors", ".gguf"))
    raise InvalidRequest(f"lora: no LoRA {name!r}; known: {', '.join(have) or 'none'}", param="lora")


# -- sampling -----------------------------------------------------------------------------------------


_NEXT_QUALITY = {"standard": "medium", "hd": "high", "max": "xhigh", "xhigh": "high"}
"""What a quality means for a model that has no preset of this name."""


def _steps(request: ImageRequest, entry: Entry, settings: Settings) -> int:
    presets: dict[str, int] = {str(key): steps for key, steps in entry.quality.items()}
    quality: str = request.quality or ""
    while quality not in presets and quality in _NEXT_QUALITY:
        quality = _NEXT_QUALITY[quality]
    steps = request.steps or presets.get(quality, entry.defaults.steps)
    return _checked_steps(steps, entry, settings, "steps")


def _checked_steps(steps: int, entry: Entry, settings: Settings, param: str) -> int:
    limit = min(entry.limits.max_steps, settings.max_steps)
    if steps > limit:
        raise InvalidRequest(
            f"{param}: {steps} steps are too many; {entry.id} takes at most {limit}", param=param
        )
    return steps


def _check_schedule(schedule: str, steps: int, entry: Entry, param: str = "steps") -> None:
    if schedule == "ays" and not entry.traits.ays:
        raise UnsupportedOperation(
            f"schedule: 'ays' is defined for SD 1.x and SDXL only, {entry.id} is {entry.family}",
            param="schedule",
        )
    if steps < 2 and schedule in ("gits", "karras", "exponential"):
        raise InvalidRequest(f"{param}: schedule {schedule!r} needs at least 2 steps", param=param)


def _guidance(request: ImageRequest, entry: Entry) -> tuple[float, float]:
    """cfg_scale and distilled guidance; `guidance_scale` means whichever the family has."""
    cfg_scale, guidance = request.cfg_scale, request.guidance
    if request.guidance_scale is not None:
        if entry.traits.distilled_guidance:
            guidance = request.guidance_scale if guidance is None else guidance
        else:
            cfg_scale = request.guidance_scale if cfg_scale is None else cfg_scale
    return (
        entry.defaults.cfg_scale if cfg_scale is None else cfg_scale,
        entry.defaults.guidance if guidance is None else guidance,
    )


def _hires(
    request: ImageRequest,
    entry: Entry,
    settings: Settings,
    aligned: tuple[int, int],
    steps: int,
    schedule: str,
) -> Hires | None:
    """The second pass; sd.cpp takes the last `steps` of a schedule of `steps / denoising_strength`."""
    if request.hires is None:
        return None
    steps = _checked_steps(request.hires.steps or steps, entry, settings, "hires")
    _check_schedule(schedule, int(steps / request.hires.denoising_strength), entry, "hires")
    max_side, max_pixels = _largest(entry, settings)
    width, height = (_align(round(side * request.hires.scale), entry.traits.multiple) for side in aligned)
    if max(width, height) > max_side or width * height > max_pixels:
        raise InvalidSize(f"hires: {width}x{height} is too large for {entry.id}", param="hires")
    return Hires(
        width=width,
        height=height,
        steps=steps,
        denoising_strength=request.hires.denoising_strength,
        upscaler=request.hires.upscaler,
    )


def _skip_layers(request: ImageRequest) -> SkipLayers | None:
    if not request.slg_scale:
        return None
    return SkipLayers(request.slg_skip_layers, request.slg_scale, request.slg_start, request.slg_end)


# -- previews -----------------------------------------------------------------------------------------


def _preview_mode(request: ImageRequest, entry: Entry) -> PreviewMode:
    wanted = request.stream_options.preview if request.stream_options else False
    if isinstance(wanted, str):
        return wanted
    if not (wanted or request.partial_images):
        return "none"
    if "taesd" in entry.files:
        return "tae"
    return "proj" if entry.traits.latent_preview else "vae"


def _partial_steps(spec: GenerateSpec, count: int) -> tuple[int, ...]:
    """`count` steps spread evenly over the sampling, never the last one."""
    total = spec.sampling_steps
    marks = {math.ceil(total * (i + 1) / (count + 1)) for i in range(count)}
    return tuple(sorted(mark for mark in marks if 0 < mark < total))
