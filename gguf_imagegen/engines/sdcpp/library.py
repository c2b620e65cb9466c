"""stable-diffusion.cpp through the low-level layer of its Python binding: the only module that knows it.

Import it in the worker process only: native code may end its process at any time. The binding's high-level
class is not used (dangling callbacks, unnoticed NULLs, wrong defaults); parameters start from the library's
own `*_init` functions, so that whatever is not set here has the value the C code means it to have.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol, get_args

import stable_diffusion_cpp.stable_diffusion_cpp as low

from gguf_imagegen.engines.sdcpp.abi import layout_faults, name_faults
from gguf_imagegen.engines.sdcpp.abilities import DEFAULT_SCHEDULE, HIRES_UPSCALERS, RNGS, SAMPLERS, SCHEDULES
from gguf_imagegen.engines.sdcpp.build import default_backend, devices, kernels
from gguf_imagegen.engines.sdcpp.embeddings import EmbeddingSlots
from gguf_imagegen.engines.sdcpp.images import copy_image, free, set_image
from gguf_imagegen.engines.sdcpp.lora_copies import LoraCopies
from gguf_imagegen.engines.sdcpp.paths import path_fields
from gguf_imagegen.engines.sdcpp.variation import first_seed, mixing
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import (
    Convert,
    Generate,
    Hires,
    LoadSpec,
    Lora,
    Prediction,
    PreviewMode,
    SkipLayers,
    StepCache,
)

PREVIEWS: Final[tuple[PreviewMode, ...]] = ("none", "proj", "tae", "vae")
STEP_CACHES: Final[tuple[StepCache, ...]] = get_args(StepCache)
PREDICTIONS: Final[tuple[Prediction, ...]] = get_args(Prediction)
CANNY: Final = (0.08, 0.08, 0.8, 1.0, False)
"""Thresholds, grey of weak and strong edges, and whether to invert, as in sd.cpp's command."""
LORA_MODES: Final = ("auto", "immediately", "at_runtime")

AbortCallback: Final = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_KEPT: Final[list[object]] = []  # the library keeps its callbacks for ever, so the closures must live as long


class Handler(Protocol):
    """Called in the middle of native code, from any thread: must not block; what it raises is lost."""

    def on_log(self, level: int, text: str) -> None: ...

    def on_progress(self, step: int, steps: int, seconds: float) -> None: ...

    def on_preview(self, step: int, width: int, height: int, rgb: bytes) -> None: ...

    def on_abort(self, text: str) -> None:
        """The last words of a failed assertion; the process ends when this returns."""


class SdCpp:
    """The library with its one context. One per process; one call at a time."""

    def __init__(self, handler: Handler, scratch: Path) -> None:
        self._handler = handler
        self._scratch = scratch
        self._slots = EmbeddingSlots(scratch)
        self._copies = LoraCopies(scratch)
        self._context: Any = None
        self._preview_mode = 0
        self._on_preview = _preview_closure(handler)
        _install(handler)

    def load(self, model: LoadSpec) -> bool:
        """Load `model` in place of what was loaded before; False if that fails, for which see the log."""
        self.unload()
        params, self._slots = context_params(model, self.backend, self.kernels), EmbeddingSlots(self._scratch)
        if model.embeddings:
            _set_embeddings(params, self._slots.every)
        context = low.new_sd_ctx(ctypes.byref(params))
        if not context:  # a NULL pointer object, not None
            return False
        self._context = context
        return True

    def unload(self) -> None:
        if self._context is not None:
            low.free_sd_ctx(self._context)
            self._context = None

    def generate(self, spec: Generate, index: int, count: int) -> list[tuple[int, int, bytes]] | None:
        """Width, height and RGB of `count` images; by `spec.seed_of`. None if that fails."""
        if self._context is None:
            raise RuntimeError("no model is loaded")
        with self._slots.filled(spec) as filled, self._copies.renamed(filled) as known:
            return self._generate(known, index, count)

    def _generate(self, spec: Generate, index: int, count: int) -> list[tuple[int, int, bytes]] | None:
        params, _kept = generation_params(spec, index, count)
        if spec.schedule == "default":
            method = params.sample_params.sample_method
            params.sample_params.scheduler = low.sd_get_default_scheduler(self._context, method)
        self.choose_preview(spec.preview)
        with mixing(low._lib, spec, index):
            images = low.generate_image(self._context, ctypes.byref(params))
        if not images:
            return None
        try:
            pictures = [copy_image(images[number]) for number in range(count)]
        finally:
            for number in range(count):
                free(images[number].data)
            free(images)
        made = [picture for picture in pictures if picture]
        return made if len(made) == count else None

    @property
    def backend(self) -> str:
        """The device that the library computes on."""
        return default_backend(tuple(devices()))

    @property
    def kernels(self) -> str:
        """Ours that the CPU part uses; empty where ggml's own do all the work."""
        return kernels() or ""

    def choose_preview(self, mode: PreviewMode) -> None:
        """Previews of the next sampling; the library reads the mode once, at its start."""
        self._preview_mode = PREVIEWS.index(mode)
        self.arm_preview(mode != "none")

    def arm_preview(self, armed: bool) -> None:
        """Whether the next step decodes a preview: unlike the mode, the library asks this at every step."""
        callback = self._on_preview if self._preview_mode else None
        low.sd_set_preview_callback(callback, self._preview_mode, 1, armed, False, None)


def convert(task: Convert) -> bool:
    """Write a model file in another type; False if that fails, for which see the log."""
    kind, rules, vae = weight_type(task.weights), _rules(task.rules), str(task.vae or "")
    paths = (str(task.source).encode(), vae.encode(), str(task.target).encode())
    return bool(low.convert(*paths, kind, rules.encode(), False))


def weight_type(name: str) -> int:
    """The library's number of a type of weights, as `q8_0`."""
    return int(low.GGMLType[f"SD_TYPE_{name.upper()}"])


def edges(image: RawImage) -> tuple[int, int, bytes] | None:
    """Width, height and RGB of the picture's edges; None if the library does not find them."""
    picture, kept = low.sd_image_t(), list[object]()
    set_image(picture, image, kept)
    return copy_image(picture) if low.preprocess_canny(picture, *CANNY) else None  # in place


def _rules(text: str) -> str:
    """With types as ggml spells them: `q4_K`."""
    return ",".join(rule[:-2] + "_K" if rule.endswith("_k") else rule for rule in text.split(","))


def self_test() -> list[str]:
    """What does not fit between the binding's structs and the library; empty when all is well."""
    return [
        *layout_faults(low.sd_ctx_params_t, low._lib.sd_ctx_params_init, {
            "vae_decode_only": True, "free_params_immediately": True, "wtype": 41, "rng_type": 1,
            "sampler_rng_type": 3, "prediction": 6, "chroma_use_dit_mask": True, "chroma_t5_mask_pad": 1,
        }),
        *layout_faults(low.sd_img_gen_params_t, low._lib.sd_img_gen_params_init, {
            "clip_skip": -1, "width": 512, "height": 512, "sample_params.sample_steps": 20,
            "sample_params.guidance.txt_cfg": 7.0, "sample_params.guidance.img_cfg": math.inf,
            "sample_params.guidance.distilled_guidance": 3.5, "sample_params.eta": math.inf,
            "sample_params.flow_shift": math.inf, "strength": 0.75, "seed": -1, "batch_count": 1,
            "pm_params.style_strength": 20.0, "vae_tiling_params.target_overlap": 0.5,
            "cache.max_cached_steps": -1, "hires.upscaler": 1, "hires.scale": 2.0,
            "hires.upscale_tile_size": 128,
        }),
        *name_faults(SAMPLERS, low._lib.sd_sample_method_name),
        *name_faults(SCHEDULES, low._lib.sd_scheduler_name),
        *name_faults(HIRES_UPSCALERS, low._lib.sd_hires_upscaler_name),
        *name_faults(PREVIEWS, low._lib.sd_preview_name),
        *name_faults(PREDICTIONS, low._lib.sd_prediction_name),
        *name_faults(RNGS, low._lib.sd_rng_type_name),
        *name_faults(LORA_MODES, low._lib.sd_lora_apply_mode_name),
    ]  # fmt: skip


def context_params(asked: LoadSpec, backend: str, kernels: str) -> Any:
    """The `sd_ctx_params_t` of a model that stays loaded and can encode images."""
    model = asked.settled(backend, kernels)
    params = low.sd_ctx_params_t()
    low._lib.sd_ctx_params_init(ctypes.byref(params))
    for name, path in path_fields(model.files).items():
        setattr(params, name, str(path).encode())
    if model.weights is not None:
        params.wtype = weight_type(model.weights)
    params.circular_x, params.circular_y = (axis in (model.seamless or "") for axis in "xy")
    params.n_threads = model.threads
    params.vae_decode_only = False
    params.free_params_immediately = False
    params.rng_type = RNGS.index(model.rng)
    params.sampler_rng_type = RNGS.index(model.sampler_rng or model.rng)
    if model.prediction is not None:
        params.prediction = PREDICTIONS.index(model.prediction)
    # "immediately" adds a LoRA to the weights and later takes it off again, which leaves rounding behind.
    params.lora_apply_mode = LORA_MODES.index("at_runtime")
    params.offload_params_to_cpu = model.offload_to_cpu or model.max_vram > 0
    params.max_vram = model.max_vram
    params.keep_vae_on_cpu = model.vae_on_cpu
    params.keep_control_net_on_cpu = model.control_net_on_cpu
    params.keep_clip_on_cpu = model.text_encoders_on_cpu
    params.enable_mmap = model.mmap
    params.flash_attn = params.diffusion_flash_attn = model.flash_attention
    params.diffusion_conv_direct = model.diffusion_conv_direct
    params.vae_conv_direct = model.vae_conv_direct
    params.qwen_image_zero_cond_t = model.zero_cond_t
    params.force_sdxl_vae_conv_scale = model.force_sdxl_vae_conv_scale
    dit_mask = model.chroma_use_dit_mask
    # Together with flash attention it breaks (docs/chroma.md).
    params.chroma_use_dit_mask = not model.flash_attention if dit_mask is None else dit_mask
    params.chroma_use_t5_mask, params.chroma_t5_mask_pad = model.chroma_use_t5_mask, model.chroma_t5_mask_pad
    has_vae = model.built_in_vae or "vae" in model.files
    params.tae_preview_only = has_vae and model.decoder == "full"
    return params


def _set_embeddings(params: Any, files: Sequence[tuple[str, Path]]) -> None:
    array = (low.sd_embedding_t * len(files))(
        *(low.sd_embedding_t(name=name.encode(), path=str(path).encode()) for name, path in files)
    )
    params.embeddings, params.embedding_count = array, len(files)  # a pointer keeps its array


def generation_params(spec: Generate, index: int, count: int) -> tuple[Any, list[object]]:
    """The `sd_img_gen_params_t` of images from `index` on, and what must stay alive as long as it is used."""
    params = low.sd_img_gen_params_t()
    low._lib.sd_img_gen_params_init(ctypes.byref(params))
    kept: list[object] = []
    params.prompt = spec.prompt.encode()
    params.negative_prompt = spec.negative_prompt.encode()
    params.width, params.height = spec.width, spec.height
    params.seed = first_seed(spec, index)
    params.batch_count = count
    params.clip_skip = spec.clip_skip
    params.strength = spec.strength
    params.control_strength = spec.control_strength
    params.vae_tiling_params.enabled = spec.vae_tiling
    tiling = params.vae_tiling_params
    (tiling.tile_size_x, tiling.tile_size_y), tiling.target_overlap = spec.vae_tile, spec.vae_tile_overlap
    params.auto_resize_ref_image = True
    params.increase_ref_index = spec.increase_ref_index
    _set_sampling(params.sample_params, spec, kept)
    _set_step_cache(params.cache, spec)
    _set_skip_layers(params.sample_params.guidance.slg, spec.skip_layers, kept)
    set_image(params.init_image, spec.init_image, kept)
    set_image(params.mask_image, spec.mask, kept)
    set_image(params.control_image, spec.control_image, kept)
    if spec.control_image is not None and spec.control_canny:
        low.preprocess_canny(params.control_image, *CANNY)  # in place
    _set_references(params, spec.ref_images, kept)
    _set_loras(params, spec.loras, kept)
    _set_hires(params.hires, spec.hires)
    return params, kept


def _set_sampling(sampling: Any, spec: Generate, kept: list[object]) -> None:
    sampling.sample_method = _number(SAMPLERS, spec.sampler, "sampler")
    if spec.schedule != DEFAULT_SCHEDULE:
        sampling.scheduler = _number(SCHEDULES, spec.schedule, "schedule")
    sampling.sample_steps = spec.steps
    sampling.eta = math.inf if spec.eta is None else spec.eta
    if spec.flow_shift is not None:
        sampling.flow_shift = spec.flow_shift
    sampling.shifted_timestep = spec.shifted_timestep
    if spec.custom_sigmas:
        sigmas = (ctypes.c_float * len(spec.custom_sigmas))(*spec.custom_sigmas)
        kept.append(sigmas)
        sampling.custom_sigmas, sampling.custom_sigmas_count = sigmas, len(sigmas)
    sampling.guidance.txt_cfg = spec.cfg_scale
    sampling.guidance.img_cfg = spec.image_cfg_scale
    sampling.guidance.distilled_guidance = spec.guidance


def _set_step_cache(cache: Any, spec: Generate) -> None:
    cache.mode = STEP_CACHES.index(spec.step_cache)
    if spec.step_cache_threshold is not None:
        cache.reuse_threshold = cache.residual_diff_threshold = spec.step_cache_threshold
    for name, value in spec.step_cache_options.items():
        setattr(cache, name, value.encode() if isinstance(value, str) else value)


def _set_skip_layers(target: Any, skip: SkipLayers | None, kept: list[object]) -> None:
    if skip is None:
        return
    layers = (ctypes.c_int * len(skip.layers))(*skip.layers)
    kept.append(layers)
    target.layers, target.layer_count = layers, len(skip.layers)
    target.layer_start, target.layer_end, target.scale = skip.start, skip.end, skip.scale


def _set_references(params: Any, images: tuple[RawImage, ...], kept: list[object]) -> None:
    if not images:
        return
    references = (low.sd_image_t * len(images))()
    for reference, image in zip(references, images, strict=True):
        set_image(reference, image, kept)
    kept.append(references)
    params.ref_images, params.ref_images_count = references, len(images)


def _set_loras(params: Any, loras: tuple[Lora, ...], kept: list[object]) -> None:
    if not loras:
        return
    array = (low.sd_lora_t * len(loras))(
        *(
            low.sd_lora_t(is_high_noise=False, multiplier=lora.scale, path=str(lora.path).encode())
            for lora in loras
        )
    )
    kept.append(array)
    params.loras, params.lora_count = array, len(loras)


def _set_hires(target: Any, hires: Hires | None) -> None:
    if hires is None:
        return
    target.enabled = True
    target.upscaler = _number(HIRES_UPSCALERS, hires.upscaler, "hires upscaler")
    target.model_path = str(hires.model).encode() if hires.model else None
    target.target_width, target.target_height = hires.width, hires.height
    target.steps = hires.steps
    target.denoising_strength = hires.denoising_strength
    target.upscale_tile_size = hires.tile


def _number(names: tuple[str, ...], name: str, what: str) -> int:
    if name not in names:
        raise ValueError(f"there is no {what} {name!r}")
    return names.index(name)


def _install(handler: Handler) -> None:
    """Point the library's process-wide callbacks at `handler`."""

    def on_log(level: int, text: bytes | None, _data: object) -> None:
        handler.on_log(level, (text or b"").decode(errors="replace").rstrip())

    def on_progress(step: int, steps: int, seconds: float, _data: object) -> None:
        handler.on_progress(step, steps, seconds)

    def on_abort(text: bytes | None) -> None:
        handler.on_abort((text or b"").decode(errors="replace").rstrip())

    log, progress, abort = (
        low.sd_log_callback(on_log),
        low.sd_progress_callback(on_progress),
        AbortCallback(on_abort),
    )
    _KEPT.extend((log, progress, abort))
    low.sd_set_log_callback(log, None)
    low.sd_set_progress_callback(progress, None)
    if hasattr(low._lib, "ggml_set_abort_callback"):
        low._lib.ggml_set_abort_callback(abort)


def _preview_closure(handler: Handler) -> object:
    def on_preview(step: int, count: int, frames: Any, _noisy: bool, _data: object) -> None:
        if count > 0 and (image := copy_image(frames[0])):
            handler.on_preview(step, *image)

    closure = low.sd_preview_callback(on_preview)
    _KEPT.append(closure)
    return closure
