"""From a request and a catalog entry to the complete specification: the one place that fills in defaults.

Everything that would kill or corrupt the engine is refused or put right here (`docs/engine.md`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from gguf_imagegen.catalog import tiles
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.vocabulary import unknown_words
from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.pictures.insets import Inset
from gguf_imagegen.planning import sampling
from gguf_imagegen.planning.bounds import check_least
from gguf_imagegen.planning.canvas import Canvas, canvas_of, enlarger
from gguf_imagegen.planning.embeddings import named_embeddings
from gguf_imagegen.planning.hires import last_canvas, second_pass
from gguf_imagegen.planning.inputs import (
    Headers,
    asked_size,
    check_inputs,
    control_image,
    edit_inputs,
    read_headers,
    repaints_only_masked,
    whole_pictures,
)
from gguf_imagegen.planning.loras import fitting_loras
from gguf_imagegen.planning.previews import preview_mode, spread_steps
from gguf_imagegen.planning.prompt import checked_prompt
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.planning.seeds import seeds_of
from gguf_imagegen.planning.upscale import Enlargement, upscale_of
from gguf_imagegen.planning.warnings import few
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Decoder, Generate, SkipLayers, Variation
from gguf_imagegen.vocabulary.errors import InvalidRequest, UnsupportedOperation, missing

Operation = Literal["generation", "edit", "variation", "upscale"]
OPENAI_QUALITIES = ("low", "medium", "high", "auto")


@dataclass(frozen=True)
class Plan:
    """A job to do: what the engine makes, and how its pixels become the answer.

    `drawn` is the centre of the engine's aligned size; where it is smaller than `width` x `height`, the size
    delivered, it is enlarged to that, by the upscaler `enlarger` or by Lanczos. `original` and `mask` (of the
    size delivered) restore the pixels that an edit must keep. With `upscale` the picture is then made
    larger; an operation that does nothing else has `pictures` and nothing to generate.
    """

    operation: Operation
    entry: Entry
    name: str
    """What the client called the model."""
    generate: Generate | None
    drawn: tuple[int, int]
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
    enlarger: Path | None = None
    upscale: Enlargement | None = None
    priority: int = 0
    whole: tuple[int, int] | None = None
    """The size of the picture of which only a part is drawn."""
    inset: Inset | None = None
    """That part."""
    pictures: tuple[RawImage, ...] = field(default=(), repr=False)
    enhanced: bool = False
    """Whether a language model wrote the prompt."""

    @property
    def spec(self) -> Generate:
        """What is generated, of a plan that generates something."""
        assert self.generate is not None
        return self.generate

    @property
    def n(self) -> int:
        """How many pictures are made."""
        return self.generate.n if self.generate else len(self.pictures)

    @property
    def sampling_steps(self) -> int:
        """Denoising steps of each picture; none where nothing is generated."""
        return self.generate.sampling_steps if self.generate else 0

    def seed(self, index: int) -> int:
        """The seed of picture `index`, 0 where nothing is generated."""
        return self.generate.seed_of(index) if self.generate else 0

    def variation(self, index: int) -> Variation | None:
        """What is mixed into the noise of picture `index`."""
        return self.generate.variation_of(index) if self.generate else None

    @property
    def delivered(self) -> tuple[int, int]:
        """Width and height of the pictures that the client gets."""
        if self.upscale:
            return self.upscale.width, self.upscale.height
        return self.whole or (self.width, self.height)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the pictures that it draws from."""
        pictures = [*self.pictures, self.original, self.mask]
        if spec := self.generate:
            pictures += [*spec.ref_images, spec.init_image, spec.mask, spec.control_image]
        return sum(len(each.data) for each in pictures if each)

    def in_tiles(self) -> Plan:
        """The same, decoded in tiles."""
        return dataclasses.replace(self, generate=replace(self.spec, vae_tiling=True))

    def without_pixels(self) -> Plan:
        """The half that describes the job, which is all that is needed when it has ended."""
        return dataclasses.replace(
            self,
            generate=self.generate and self.generate.without_pixels(),
            original=None,
            mask=None,
            pictures=tuple(picture.without_pixels() for picture in self.pictures),
        )


@dataclass(frozen=True)
class Sketch:
    """A plan in which only the pixels of the request's pictures are missing."""

    request: ImageRequest
    settings: Settings
    headers: Headers
    canvas: Canvas
    """To which the pictures are brought, before a second pass makes it larger."""
    bare: Plan

    @property
    def memory(self) -> int:
        """Bytes that it takes to complete it; what an upscale enlarges is kept at its full size."""
        kept = sum(3 * width * height for width, height in (each.size for each in self.headers.pictures))
        whole = self.bare.operation == "upscale" or self.bare.whole is not None
        return self.headers.memory + (kept if whole else 0)

    def plan(self) -> Plan:
        """The plan with its pixels. CPU-bound when there are images: call it in a thread."""
        request, settings, bare = self.request, self.settings, self.bare
        if bare.generate is None:
            return dataclasses.replace(bare, pictures=whole_pictures(request, settings))
        edit = edit_inputs(request, bare.entry, settings, self.headers, self.canvas)
        spec = replace(
            bare.generate,
            init_image=edit.init,
            mask=edit.init_mask,
            ref_images=edit.references,
            control_image=control_image(request, bare.entry, settings, self.canvas),
        )
        partial_steps = spread_steps(spec, request.partial_images or 0)
        if partial_steps and not (request.stream_options and request.stream_options.preview):
            spec = replace(spec, preview_steps=partial_steps)
        made = dataclasses.replace(bare, generate=spec, partial_steps=partial_steps)
        if spec.hires:
            return made
        return dataclasses.replace(made, original=edit.original, mask=edit.mask, inset=edit.inset)


def plan(
    request: ImageRequest, entry: Entry, settings: Settings, operation: Operation, warnings: list[str]
) -> Plan:
    """Complete and check a request. CPU-bound when there are images: call it in a thread."""
    return sketch(request, entry, settings, operation, warnings).plan()


def sketch(
    request: ImageRequest,
    entry: Entry,
    settings: Settings,
    operation: Operation,
    warnings: list[str],
    able: Abilities = ABILITIES,
) -> Sketch:
    """Check a request, and complete it as far as that can be done without decoding a picture."""
    notes = list(warnings)
    prompt = checked_prompt(request.prompt, "prompt", settings, notes)
    negative = checked_prompt(request.negative_prompt, "negative_prompt", settings, notes)
    if operation != "generation" and not request.image:
        raise InvalidRequest("image: at least one image is required", param="image", faults=missing("image"))
    notes += unknown_words(entry, prompt)
    if request.background == "transparent":
        notes.append(f"background: {entry.id} cannot make transparent images; this one is opaque")
    if request.decoder is not None:
        entry = _decoded_by(request.decoder, entry)
    n = request.n or 1
    if n > settings.max_images:
        raise InvalidRequest(f"n: at most {settings.max_images} images in one request", param="n")
    seed, variation = seeds_of(request, n, notes)

    headers = read_headers(request, settings)
    if operation == "upscale":
        return _upscale_sketch(request, entry, settings, headers, notes)
    check_inputs(request, entry, settings, headers)
    canvas = canvas_of(asked_size(request, entry, settings, headers.pictures), entry, settings, notes)
    check_least(canvas.delivered, settings)
    from_noise = bool(headers.pictures) and entry.edit_mode in ("reference", "control")
    steps = sampling.steps(request, entry, settings, notes)
    sampler = request.sampler or sampling.own(entry.defaults.sampler, able.samplers)
    last = last_canvas(request, entry, settings, canvas, notes)
    hires = second_pass(request, entry, settings, last, steps, notes, able)
    fewest = min(steps, int(hires.steps / hires.denoising_strength)) if hires else steps
    schedule = sampling.schedule(request, entry, able, fewest, notes)
    step_cache = sampling.step_cache(request, entry, notes)
    if from_noise and request.strength is not None:
        notes.append(f"strength: has no effect, {entry.id} edits by {entry.edit_mode}")
    if entry.edit_mode == "control" and not headers.pictures and request.control is None:
        notes.append(f"image: {entry.id} was sent no picture of edges or depth to follow")
    if request.strength is not None and not headers.pictures:
        notes.append("strength: has no effect without an image")
    strength = entry.defaults.strength if request.strength is None else request.strength
    cfg_scale, image_cfg_scale, guidance = sampling.guidance(request, entry, notes)
    if negative.strip() and cfg_scale == image_cfg_scale == 1:
        notes.append("negative_prompt: has no effect without guidance (cfg_scale 1)")
    spec = Generate(
        prompt=prompt,
        negative_prompt=negative,
        width=canvas.aligned[0],
        height=canvas.aligned[1],
        steps=steps,
        sampler=sampler,
        schedule=schedule,
        cfg_scale=cfg_scale,
        image_cfg_scale=image_cfg_scale,
        guidance=guidance,
        seed=seed,
        variation=variation,
        n=n,
        clip_skip=entry.defaults.clip_skip if request.clip_skip is None else request.clip_skip,
        eta=request.eta,
        flow_shift=entry.defaults.flow_shift if request.flow_shift is None else request.flow_shift,
        step_cache=step_cache,
        step_cache_threshold=request.step_cache_threshold,
        strength=1.0 if from_noise else strength,
        vae_tiling=request.vae_tiling or request.vae_tile_size is not None,
        vae_tile=request.vae_tile_size or tiles.tile_of(entry.family, *last.aligned),
        vae_tile_overlap=tiles.OVERLAP if request.vae_tile_overlap is None else request.vae_tile_overlap,
        custom_sigmas=request.custom_sigmas,
        shifted_timestep=sampling.shifted_timestep(request, entry, notes),
        step_cache_options=sampling.step_cache_options(request, step_cache, notes),
        increase_ref_index=request.increase_ref_index,
        init_image=None,
        mask=None,
        ref_images=(),
        control_image=None,
        control_strength=request.control_strength,
        control_canny=request.canny,
        loras=fitting_loras(request.lora, entry, settings, notes),
        hires=hires,
        skip_layers=_skip_layers(request),
        preview=preview_mode(request, entry),
        preview_steps=(),
        preview_interval=settings.preview_interval,
        embeddings=named_embeddings((prompt, negative), entry, settings, notes),
    )
    whole = _whole(request, headers, notes)
    bare = Plan(
        operation=operation,
        entry=entry,
        name=request.model or entry.id,
        generate=spec,
        drawn=last.drawn,
        width=last.delivered[0],
        height=last.delivered[1],
        output_format=request.output_format or "png",
        output_compression=request.output_compression,
        quality=request.quality if request.quality in OPENAI_QUALITIES else "auto",
        keep_alive=settings.keep_alive if request.keep_alive is None else request.keep_alive,
        original=None,
        mask=None,
        partial_steps=(),
        warnings=tuple(few(notes)),
        enlarger=enlarger(settings) if last.drawn != last.delivered else None,
        upscale=upscale_of(request, settings, whole or last.delivered),
        whole=whole,
        priority=request.priority,
        enhanced=request.enhance,
    )
    return Sketch(request, settings, headers, canvas, bare)


def _whole(request: ImageRequest, headers: Headers, notes: list[str]) -> tuple[int, int] | None:
    """The size of the picture of which only the masked part is drawn."""
    if not repaints_only_masked(request):
        if request.only_masked:
            notes.append("only_masked: has no effect without a mask")
        return None
    if request.hires is not None:
        raise InvalidRequest(
            "only_masked: goes without hires; say a larger 'size' instead", param="only_masked"
        )
    return headers.pictures[0].size


def _upscale_sketch(
    request: ImageRequest, entry: Entry, settings: Settings, headers: Headers, notes: list[str]
) -> Sketch:
    """Larger copies of the images and nothing else: no step is made, and no model is loaded."""
    size = width, height = headers.pictures[0].size
    if any(each.size != size for each in headers.pictures):
        raise InvalidRequest("image: images that are upscaled together must have one size", param="image")
    upscale = upscale_of(request, settings, size, needed=True)
    bare = Plan(
        operation="upscale",
        entry=entry,
        name=upscale.path.stem if upscale else entry.id,
        generate=None,
        drawn=size,
        width=width,
        height=height,
        output_format=request.output_format or "png",
        output_compression=request.output_compression,
        quality="auto",
        keep_alive=settings.keep_alive,
        original=None,
        mask=None,
        partial_steps=(),
        warnings=tuple(few(notes)),
        upscale=upscale,
        priority=request.priority,
    )
    return Sketch(request, settings, headers, Canvas(size, size, size), bare)


def _skip_layers(request: ImageRequest) -> SkipLayers | None:
    if not request.slg_scale:
        return None
    return SkipLayers(request.slg_skip_layers, request.slg_scale, request.slg_start, request.slg_end)


def _decoded_by(decoder: Decoder, entry: Entry) -> Entry:
    """The model with the decoder of the request; another one than before means to load it again."""
    if decoder == "tiny" and "taesd" not in entry.files:
        raise UnsupportedOperation(
            f"decoder: {entry.id} has no tiny decoder (a TAESD file, role taesd)", param="decoder"
        )
    return entry.model_copy(update={"decoder": decoder})
