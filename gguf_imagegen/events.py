"""The closed vocabulary of what an engine tells about a generation, in the order in which it happens.

Worker and server exchange exactly these; a job's history consists of these and of the job's own events
(`gguf_imagegen.jobs.job`). Pixels are raw 8-bit RGB rows, `width * height * 3` bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Phase: TypeAlias = Literal[
    "loading", "conditioning", "encoding", "sampling", "hires", "decoding", "upscaling"
]


@dataclass(frozen=True)
class Loading:
    """`done` of `total` tensors of the model file named `what` (a bare name) are in memory."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Loaded:
    """The model is ready. `backend` is what the engine really computes on, e.g. "CPU" or "CUDA0"."""

    seconds: float
    family: str
    backend: str


@dataclass(frozen=True)
class PhaseChanged:
    """Image `index` entered `phase`."""

    index: int
    phase: Phase


@dataclass(frozen=True)
class Progress:
    """`step` of `steps` of the phase are done; in "sampling" and "hires" a step is a denoising step,
    in "decoding" and "upscaling" a tile.

    `seconds_per_step` is the engine's own running average, 0.0 before the first step.
    """

    index: int
    phase: Phase
    step: int
    steps: int
    seconds_per_step: float


@dataclass(frozen=True)
class Preview:
    """What image `index` looks like after `step` of `steps`; often smaller than the image."""

    index: int
    step: int
    steps: int
    width: int
    height: int
    rgb: bytes = field(repr=False)


@dataclass(frozen=True)
class Timings:
    """Measured milliseconds of one image, by phase; `steps` is the number of denoising steps really run."""

    conditioning_ms: float
    sampling_ms: float
    decoding_ms: float
    total_ms: float
    steps: int


@dataclass(frozen=True)
class ImageMade:
    """Image `index` is finished, at the engine's aligned size."""

    index: int
    seed: int
    width: int
    height: int
    timings: Timings
    rgb: bytes = field(repr=False)


@dataclass(frozen=True)
class Upscaled:
    """Image `index` made larger, by as much as the upscaling model does."""

    index: int
    width: int
    height: int
    rgb: bytes = field(repr=False)


@dataclass(frozen=True)
class Notice:
    """Something the user should know although the generation goes on, e.g. a retry with VAE tiling."""

    message: str


@dataclass(frozen=True)
class Failed:
    """The engine gave up on the command it was running; the worker itself is still alive."""

    code: Literal["model_load_failed", "generation_failed", "insufficient_memory"]
    message: str


@dataclass(frozen=True)
class Done:
    """The command is finished; nothing more comes until the next one."""


EngineEvent: TypeAlias = (
    Loading | Loaded | PhaseChanged | Progress | Preview | ImageMade | Upscaled | Notice | Failed | Done
)
