"""The closed vocabulary of what an engine tells about a generation, in the order in which it happens.

Worker and server exchange exactly these; a job's history consists of these and of the job's own events
(`gguf_imagegen.jobs.job`).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from gguf_imagegen.vocabulary.artifacts import Artifact, RawImage

Phase: TypeAlias = Literal[
    "loading", "conditioning", "encoding", "sampling", "hires", "decoding", "upscaling"
]


class Loading(Struct, frozen=True, tag=True):
    """`done` of `total` tensors of the model file named `what` (a bare name) are in memory."""

    what: str
    done: int
    total: int


class Loaded(Struct, frozen=True, tag=True):
    """The model is ready. `backend` is what the engine really computes on, e.g. "CPU" or "CUDA0".

    `kernels` are those of ours that its CPU part uses, e.g. "AVX2 f32"; none: ggml's own.
    """

    seconds: float
    family: str
    backend: str
    kernels: str = ""


class PhaseChanged(Struct, frozen=True, tag=True):
    """Image `index` entered `phase`."""

    index: int
    phase: Phase


class Progress(Struct, frozen=True, tag=True):
    """`step` of `steps` of the phase are done; in "sampling" and "hires" a step is a denoising step,
    in "decoding" and "upscaling" a tile.

    `seconds_per_step` is the engine's own running average, 0.0 before the first step.
    """

    index: int
    phase: Phase
    step: int
    steps: int
    seconds_per_step: float


class Preview(Struct, frozen=True, tag=True):
    """What image `index` looks like after `step` of `steps`; often smaller than the image."""

    index: int
    step: int
    steps: int
    picture: RawImage


class Timings(Struct, frozen=True):
    """Measured milliseconds of one image, by phase; `steps` is the number of denoising steps really run."""

    conditioning_ms: float = 0.0
    sampling_ms: float = 0.0
    decoding_ms: float = 0.0
    total_ms: float = 0.0
    steps: int = 0


class Made(Struct, frozen=True, tag=True):
    """Artifact `index` is finished: a picture of the aligned size, or as large as an upscaler makes it.

    `timings` are those of a generation.
    """

    index: int
    artifact: Artifact
    timings: Timings = Timings()


class PreviewFile(Struct, frozen=True, tag=True):
    """A preview that its lane has encoded."""

    index: int
    step: int
    steps: int
    data: bytes


class PictureFile(Struct, frozen=True, tag=True):
    """Picture `index` as it is delivered, which its lane has finished and encoded."""

    index: int
    data: bytes
    timings: Timings


class TextLine(Struct, frozen=True):
    """One line of text; `box` is its corners in pixels from the top left one clockwise, `score` 0 to 1."""

    text: str
    score: float
    box: tuple[tuple[float, float], ...]


class TextFound(Struct, frozen=True, tag=True):
    """All text of a picture, from top to bottom."""

    lines: tuple[TextLine, ...]


class Notice(Struct, frozen=True, tag=True):
    """Something the user should know although the generation goes on, e.g. a retry with VAE tiling."""

    message: str


class Failed(Struct, frozen=True, tag=True):
    """The engine gave up on the command it was running; the worker itself is still alive."""

    code: Literal[
        "model_load_failed", "generation_failed", "reading_failed", "conversion_failed", "invalid_image",
        "insufficient_memory",
    ]  # fmt: skip
    message: str


class Done(Struct, frozen=True, tag=True):
    """The command is finished; nothing more comes until the next one."""


EngineEvent: TypeAlias = (
    Loading
    | Loaded
    | PhaseChanged
    | Progress
    | Preview
    | PreviewFile
    | Made
    | PictureFile
    | TextFound
    | Notice
    | Failed
    | Done
)
