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
from gguf_imagegen.catalog.vocabulary import unknown_words
from gguf_imagegen.engine.protocol import (
    Decoder,
    GenerateSpec,
    Hires,
    Lora,
    PreviewMode,
    RawImage,
    SkipLayers,
    StepCache,
)
from gguf_imagegen.errors import InvalidRequest, InvalidSize, UnsupportedOperation
from gguf_imagegen.jobs.folders import named_file
from gguf_imagegen.jobs.inputs import (
    align,
    control_image,
    decode_images,
    delivered_size,
    edit_inputs,
    largest,
)
from gguf_imagegen.jobs.prompt import checked_prompt
from gguf_imagegen.jobs.upscale import Upscale, upscale_of
from gguf_imagegen.schema.request import MAX_SEED, ImageRequest
from gguf_imagegen.settings import Settings

Operation = Literal["generation", "edit", "variation", "upscale"]
OPENAI_QUALITIES = ("low", "medium", "high", "auto")


@dataclass(frozen=True)
class Plan:
    """A job to do: what the engine makes, and how its pixels become the answer.

    `width` x `height` is the size delivered, the centre of the engine's aligned size. `original` and
    `mask` (of that size) restore the pixels that an edit must keep. With `upscale` the picture is then made
    larger; `pictures` are those of an operation that does nothing else.
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
    upscale: Upscale | None = None
    pictures: tuple[RawImage, ...] = field(default=(), repr=False)

    @property
    def delivered(self) -> tuple[int, int]:
        """Width and height of the pictures that the client gets."""
        return (self.upscale.width, self.upscale.height) if self.upscale else (self.width, self.height)


def plan(
    request: ImageRequest, entry: Entry, settings: Settings, operation: Operation, warnings: list[str]
) -> Plan:
    """Complete and check a request. CPU-bound when there are images: call it in a thread."""
    notes = list(warnings)
    prompt = checked_prompt(request.prompt, "prompt", settings, notes)
    negative = checked_prompt(request.negative_prompt, "negative_prompt", settings, notes)
    if operation != "generation" and not request.image:
        raise InvalidRequest("image: at least one image is needed", param="image")
    if not prompt.strip() and operation in ("generation", "edit"):
        raise InvalidRequest("prompt: is required and must not be empty", param="prompt")
    notes += unknown_words(entry, prompt)
    if request.background == "transparent":
        raise UnsupportedOperation(
            f"background: {entry.id} cannot make transparent images; use 'opaque' or 'auto'",
            param="background",
        )
    if request.decoder is not None:
        entry = _decoded_by(request.decoder, entry)
    n = request.n or 1
    if n > settings.max_images:
        raise InvalidRequest(f"n: at most {settings.max_images} images in one request", param="n")
    if request.seed is not None and request.seed > MAX_SEED - n + 1:
        raise InvalidRequest(
            f"seed: at most {MAX_SEED - n + 1} for {n} images, whose seeds count up", param="seed"
        )

    inputs = decode_images(request, settings)
    if operation == "upscale":
        return _upscale_plan(request, entry, settings, inputs, notes)
    width, height = delivered_size(request, entry, settings, inputs)
    aligned = align(width, entry.traits.multiple), align(height, entry.traits.multiple)
    edit = edit_inputs(request, entry, settings, inputs, (width, height), aligned)
    steps = _steps(request, entry, settings)
    sampler = request.sampler or entry.defaults.sampler
    schedule = request.schedule or entry.defaults.schedule
    _check_schedule(schedule, steps, entry)
    step_cache = _step_cache(request, entry, notes)
    if edit.references and request.strength is not None:
        notes.append(f"strength: has no effect, {entry.id} edits by reference")
    strength = entry.defaults.strength if request.strength is None else request.strength
    cfg_scale, guidance = _guidance(request, entry, notes)
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
        step_cache=step_cache,
        step_cache_threshold=request.step_cache_threshold,
        strength=1.0 if edit.references else strength,
        vae_tiling=request.vae_tiling,
        init_image=edit.init,
        mask=edit.init_mask,
        ref_images=edit.references,
        control_image=control_image(request, entry, settings, (width, height), aligned),
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
        upscale=upscale_of(request, settings, (width, height)),
    )


def _upscale_plan(
    request: ImageRequest, entry: Entry, settings: Settings, inputs: list[Image.Image], notes: list[str]
) -> Plan:
    """Larger copies of the images and nothing else: no step is made, and no model is loaded."""
    pictures = tuple(images.to_raw(picture) for picture in inputs)
    width, height = pictures[0].width, pictures[0].height
    if any((each.width, each.height) != (width, height) for each in pictures):
        raise InvalidRequest("image: images that are upscaled together must have one size", param="image")
    spec = GenerateSpec(
        prompt="", negative_prompt="", width=width, height=height, steps=0, sampler="", schedule="",
        cfg_scale=0.0, image_cfg_scale=0.0, guidance=0.0, seed=0, n=len(pictures), clip_skip=-1, eta=None,
        flow_shift=None, step_cache="none", step_cache_threshold=None, strength=0.0,
        vae_tiling=False, init_image=None, mask=None, ref_images=(),
        control_image=None, control_strength=0.0, loras=(), hires=None, skip_layers=None, preview="none",
        preview_steps=(), preview_interval=0.0,
    )  # fmt: skip
    return Plan(
        operation="upscale",
        entry=entry,
        spec=spec,
        width=width,
        height=height,
        output_format=request.output_format or "png",
        output_compression=request.output_compression,
        quality="auto",
        keep_alive=settings.keep_alive,
        original=None,
        mask=None,
        partial_steps=(),
        warnings=tuple(notes),
        upscale=upscale_of(request, settings, (width, height), needed=True),
        pictures=pictures,
    )


# -- sampling -----------------------------------------------------------------------------------------


_NEXT_QUALITY = {"standard": "medium", "hd": "high", "max": "xhigh", "xhigh": "high"}
"""What a quality means for a model that has no preset of this name."""


def _steps(request: ImageRequest, entry: Entry, settings: Settings) -> int:
    """As asked; else by quality or the model's own, and then never more than this server makes."""
    presets: dict[str, int] = {str(key): steps for key, steps in entry.quality.items()}
    quality: str = request.quality or ""
    while quality not in presets and quality in _NEXT_QUALITY:
        quality = _NEXT_QUALITY[quality]
    if request.steps:
        return _checked_steps(request.steps, entry, settings, "steps")
    return min(presets.get(quality, entry.defaults.steps), entry.limits.max_steps, settings.max_steps)


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


def _step_cache(request: ImageRequest, entry: Entry, notes: list[str]) -> StepCache:
    """As asked; without one that the family cannot have, as sd.cpp goes on, too."""
    cache = request.step_cache or entry.defaults.step_cache
    if cache in entry.traits.step_caches:
        return cache
    notes.append(
        f"step_cache: {entry.id} cannot have {cache!r}, only {', '.join(entry.traits.step_caches)};"
        " all steps were made"
    )
    return "none"


def _guidance(request: ImageRequest, entry: Entry, notes: list[str]) -> tuple[float, float]:
    """cfg_scale and distilled guidance; `guidance_scale` means whichever the family has.

    A model draws garbage above its own greatest cfg_scale, so that a larger one is lowered, with a note.
    """
    cfg_scale, guidance = request.cfg_scale, request.guidance
    if request.guidance_scale is not None:
        if entry.traits.distilled_guidance:
            guidance = request.guidance_scale if guidance is None else guidance
        else:
            cfg_scale = request.guidance_scale if cfg_scale is None else cfg_scale
    most = entry.limits.cfg_scale
    if most is not None and cfg_scale is not None and cfg_scale > most:
        notes.append(f"cfg_scale: {entry.id} takes at most {most:g}; {cfg_scale:g} was lowered to that")
        cfg_scale = most
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
    max_side, max_pixels = largest(entry, settings)
    scaled = [round(side * request.hires.scale) for side in aligned]
    wanted = [request.hires.width or scaled[0], request.hires.height or scaled[1]]
    width, height = (align(side, entry.traits.multiple) for side in wanted)
    if max(width, height) > max_side or width * height > max_pixels:
        raise InvalidSize(f"hires: {width}x{height} is too large for {entry.id}", param="hires")
    upscaler, model = _hires_upscaler(request.hires.upscaler, settings)
    return Hires(
        width=width,
        height=height,
        steps=steps,
        denoising_strength=request.hires.denoising_strength,
        upscaler=upscaler,
        model=model,
    )


_PIXEL_UPSCALERS = ("lanczos", "nearest")
_LATENT_UPSCALERS = (
    "latent", "latent_nearest", "latent_nearest_exact", "latent_antialiased", "latent_bicubic",
    "latent_bicubic_antialiased",
)  # fmt: skip


def _hires_upscaler(name: str, settings: Settings) -> tuple[str, Path | None]:
    """sd.cpp's name of a built-in one, which AUTOMATIC1111 spells with blanks, or "model" and its file."""
    plain = re.sub(r"[^a-z]+", "_", name.lower()).strip("_")
    if plain in (*_LATENT_UPSCALERS, *_PIXEL_UPSCALERS):
        return plain, None
    return "model", named_file(name, settings.upscaler_dir, "upscaler")


def _skip_layers(request: ImageRequest) -> SkipLayers | None:
    if not request.slg_scale:
        return None
    return SkipLayers(request.slg_skip_layers, request.slg_scale, request.slg_start, request.slg_end)


def _loras(request: ImageRequest, settings: Settings) -> tuple[Lora, ...]:
    return tuple(Lora(named_file(lora.name, settings.lora_dir, "lora"), lora.scale) for lora in request.lora)


# -- previews -----------------------------------------------------------------------------------------


def _decoded_by(decoder: Decoder, entry: Entry) -> Entry:
    """The model with the decoder of the request; another one than before means to load it again."""
    if decoder == "tiny" and "taesd" not in entry.files:
        raise UnsupportedOperation(
            f"decoder: {entry.id} has no tiny decoder (a TAESD file, role taesd)", param="decoder"
        )
    return entry.model_copy(update={"decoder": decoder})


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
