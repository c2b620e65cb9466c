"""The seam between the server and whatever computes the pictures: what goes in, and the few methods.

A `LoadSpec` says what to load, a `Generate` what to make; both are complete (no optional defaults
are left to the engine) and already checked. What comes out is `gguf_imagegen.vocabulary.events`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.events import EngineEvent

Role = Literal[
    "model", "diffusion", "clip_l", "clip_g", "clip_vision", "t5xxl", "llm", "llm_vision", "vae", "taesd",
    "control_net", "upscaler",
]  # fmt: skip
Decoder = Literal["full", "tiny"]
PreviewMode = Literal["none", "proj", "tae", "vae"]
WeightType = Literal[
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "iq4_nl", "q3_k",
    "q2_k",
]  # fmt: skip
"""Types that weights can be converted to, by the names of ggml in small letters, best first."""
StepCache = Literal["none", "easycache", "ucache", "dbcache", "taylorseer", "cache-dit", "spectrum"]
"""Ways of sd.cpp to leave out steps that would change little (`docs/caching.md` there)."""


Seamless = Literal["x", "y", "xy"]
"""Which edges of a picture fit their opposites: left and right, top and bottom, or all."""
Prediction = Literal["eps", "v", "edm_v", "sd3_flow", "flux_flow", "flux2_flow"]
"""What a network was trained to predict, by sd.cpp's names."""
Rng = Literal["cuda", "cpu"]
Kernels = Literal["auto", "off", "f32", "bf16", "int8"]
"""What our kernels in ggml's CPU part multiply in, at most; auto: the fastest that is near to f32.

int8 is for quantised weights, and rounds what they are multiplied with.
"""
DEFAULT_TILE = 128
"""Pixels a side of what an upscaler computes at once, as sd.cpp's own programs have it."""


class LoadSpec(Struct, frozen=True, tag=True):
    """The files of one model by role, and how to load them.

    With `built_in_vae` the model file holds a VAE itself. Where a TAESD stands beside a VAE, it makes
    previews only, unless `decoder` is "tiny". `zero_cond_t` is how Qwen-Image-Edit 2511 wants its timestep
    (sd.cpp's docs/qwen_image_edit.md).

    `max_vram` is GiB of graphics memory that one computation may take, 0 as much as it needs; weights then
    wait in main memory. `sampler_rng` None is `rng`, `prediction` None what the file's tensors tell, and
    `chroma_use_dit_mask` None is only without flash attention.

    With `embeddings` prompts may name textual inversions (`Generate.embeddings`).

    Direct convolutions and flash attention need less memory and may be faster or slower; None leaves them to
    what the engine computes on, see `settled`. `weights` is the type that weights are converted to while they
    are read; None leaves them as they are. `kernels` are for the worker's environment, `huge_pages` for its
    malloc, see `engines.process`. `mmap` says how files are read: mapped, or in pieces; the weights are
    copied either way.
    """

    name: str
    files: Mapping[Role, Path]
    threads: int
    built_in_vae: bool = False
    decoder: Decoder = "full"
    zero_cond_t: bool = False
    seamless: Seamless | None = None
    flash_attention: bool | None = None
    diffusion_conv_direct: bool | None = None
    vae_conv_direct: bool | None = None
    kernels: Kernels = "auto"
    huge_pages: bool = False
    mmap: bool = False
    offload_to_cpu: bool = False
    vae_on_cpu: bool = False
    text_encoders_on_cpu: bool = False
    control_net_on_cpu: bool = False
    max_vram: float = 0.0
    rng: Rng = "cuda"
    sampler_rng: Rng | None = None
    prediction: Prediction | None = None
    force_sdxl_vae_conv_scale: bool = False
    chroma_use_dit_mask: bool | None = None
    chroma_use_t5_mask: bool = False
    chroma_t5_mask_pad: int = 1
    embeddings: bool = False
    weights: WeightType | None = None

    def settled(self, backend: str, kernels: str) -> LoadSpec:
        """With what is left open as it is best on a backend of ggml where `kernels` are in use.

        Without ours flash attention is faster on CUDA alone, by sd.cpp's docs/performance.md.
        """
        fast = has_fast_kernels(backend, kernels)
        return replace(
            self,
            flash_attention=_unless_said(self.flash_attention, fast or backend.startswith("CUDA")),
            diffusion_conv_direct=_unless_said(self.diffusion_conv_direct, fast),
            vae_conv_direct=_unless_said(self.vae_conv_direct, fast),
        )


def has_fast_kernels(backend: str, kernels: str) -> bool:
    """Whether direct convolutions and flash attention are fast on a CPU: ours are; "" means ggml's own."""
    return backend == "CPU" and bool(kernels)


def _unless_said(said: bool | None, otherwise: bool) -> bool:
    return otherwise if said is None else said


class Lora(Struct, frozen=True):
    """`path` lies inside the LoRA folder; `scale` multiplies its weights; `name` is that of the list.

    `renamed` has names of its tensors that the engine does not know, and those by which it does. One that is
    not `checked` was named where the model's files are not: whether it fits is to be seen where they are.
    """

    path: Path
    scale: float
    name: str = ""
    renamed: dict[str, str] = {}
    checked: bool = True


class Embedding(Struct, frozen=True):
    """A textual inversion; `word` is how prompts name it, in small or capital letters."""

    word: str
    path: Path


class Hires(Struct, frozen=True):
    """A second pass at `width` x `height` (aligned) after an upscale; by the file `model` for "model".

    That computes in squares of `tile` pixels a side.
    """

    width: int
    height: int
    steps: int
    denoising_strength: float
    upscaler: str
    model: Path | None
    tile: int = DEFAULT_TILE


class SkipLayers(Struct, frozen=True):
    """Skip-layer guidance: `layers` are skipped between the fractions `start` and `end` of the steps."""

    layers: tuple[int, ...]
    scale: float
    start: float
    end: float


class Variation(Struct, frozen=True):
    """Noise that is mixed with that of a second seed, `strength` of it, above 0; picture i has `seed + i`.

    At strength 1 the pictures are those of this seed alone.
    """

    seed: int
    strength: float


class Generate(Struct, frozen=True, tag=True):
    """One request, complete. Sizes are pixels, aligned to what the model family needs.

    `n` images are wanted, and those before number `first` are there already. Image i uses seed `seed + i`;
    with a `variation` all use `seed`, each mixed with another one's noise.
    `eta` None means the sampler's own default, `step_cache_threshold` None the cache's. `preview_steps` names
    the denoising steps after which a preview is wanted (empty: after every step, at most one each
    `preview_interval` seconds). `custom_sigmas` are the noise levels of the steps and of the result, if not
    the schedule's. `shifted_timestep` is how many of 1000 timesteps SDXL was distilled to, 0 for all. With
    `vae_tiling` tiles of `vae_tile` latent pixels overlap by `vae_tile_overlap` of their side.
    `step_cache_options` are fields of `sd_cache_params_t`. With `increase_ref_index` each reference has a
    position of its own. With `control_canny` the ControlNet gets the edges of its image.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    sampler: str
    schedule: str
    cfg_scale: float
    image_cfg_scale: float
    guidance: float
    seed: int
    n: int
    clip_skip: int
    eta: float | None
    flow_shift: float | None
    step_cache: StepCache
    step_cache_threshold: float | None
    strength: float
    vae_tiling: bool
    init_image: RawImage | None
    mask: RawImage | None
    ref_images: tuple[RawImage, ...]
    control_image: RawImage | None
    control_strength: float
    loras: tuple[Lora, ...]
    hires: Hires | None
    skip_layers: SkipLayers | None
    preview: PreviewMode
    preview_steps: tuple[int, ...]
    preview_interval: float
    vae_tile: tuple[int, int] = (32, 32)
    vae_tile_overlap: float = 0.5
    custom_sigmas: tuple[float, ...] = ()
    shifted_timestep: int = 0
    step_cache_options: Mapping[str, bool | int | float | str] = {}
    increase_ref_index: bool = False
    embeddings: tuple[Embedding, ...] = ()
    control_canny: bool = False
    first: int = 0
    variation: Variation | None = None

    def seed_of(self, index: int) -> int:
        """The seed of image `index`."""
        return self.seed if self.variation else self.seed + index

    def variation_of(self, index: int) -> Variation | None:
        """What is mixed into the noise of image `index`."""
        return self.variation and replace(self.variation, seed=self.variation.seed + index)

    @property
    def decoded(self) -> tuple[int, int]:
        """Width and height of what is decoded last."""
        return (self.hires.width, self.hires.height) if self.hires else (self.width, self.height)

    def without_pixels(self) -> Generate:
        """All that describes the pictures, with the outlines of what they were drawn from.

        Names of a LoRA's tensors, of which there may be thousands, are left out as well.
        """
        return replace(
            self,
            init_image=self.init_image and self.init_image.without_pixels(),
            mask=self.mask and self.mask.without_pixels(),
            ref_images=tuple(image.without_pixels() for image in self.ref_images),
            control_image=self.control_image and self.control_image.without_pixels(),
            loras=tuple(replace(lora, renamed={}) for lora in self.loras),
        )

    @property
    def sampling_steps(self) -> int:
        """Denoising steps that will really run: img2img skips the first ones (sd.cpp, IMG2IMG branch)."""
        if self.init_image is None or self.strength >= 1.0:
            return self.steps
        return min(int(self.steps * self.strength), self.steps - 1) + 1


class Upscale(Struct, frozen=True, tag=True):
    """Enlarge `image`, number `index` of its job, by the ESRGAN model at `path`, which sets the factor.

    `tile` is the side of the squares that it is computed in, pixels of the image.
    """

    path: Path
    image: RawImage
    index: int
    threads: int
    tile: int = DEFAULT_TILE


class Read(Struct, frozen=True, tag=True):
    """Read the text in a picture of at most `max_pixels`; `file` is as it was sent, not decoded yet."""

    file: bytes
    max_pixels: int


class Edges(Struct, frozen=True, tag=True):
    """Draw the edges of an RGB `image`, white on black, as `Generate.control_canny` has them."""

    image: RawImage


class Convert(Struct, frozen=True, tag=True):
    """Write the weights of `source` to the new GGUF file `target` as type `weights`, needing no loaded model.

    `rules` are `PATTERN=TYPE` joined by commas: tensors whose names a pattern matches get that type. `vae`
    is written into the file with the rest. All of it is in memory before the writing begins.
    """

    source: Path
    target: Path
    weights: WeightType
    rules: str
    vae: Path | None


Task: TypeAlias = Generate | Upscale | Read | Convert | Edges
"""What an engine can be asked to do."""


class LiveEngine(Protocol):
    """An engine that may have a model, and runs one task at a time.

    The iterator ends after its last event. It raises `WorkerCrashed` if the engine died, and
    `GenerationFailed` or `InsufficientMemory` if it reported a failure.
    """

    def run(self, task: Task) -> AsyncIterator[EngineEvent]:
        """Do the task: phases, progress, previews, and each artifact as soon as it is made.

        Upscaling, edges and converting need no loaded model; of a conversion `Loading` tells what was read.
        """
        ...

    async def close(self) -> None:
        """End the engine now, whatever it is doing, and return when it is gone. Idempotent."""
        ...

    @property
    def alive(self) -> bool:
        """True between a successful start and the end of the engine."""
        ...


class Engine(LiveEngine, Protocol):
    """One that loads what it is told to. It raises `ModelLoadFailed`, too."""

    def load(self, spec: LoadSpec) -> AsyncIterator[EngineEvent]:
        """Load the model: `Loading` events, then one `Loaded`."""
        ...
