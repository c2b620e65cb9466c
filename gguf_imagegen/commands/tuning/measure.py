"""How fast a loaded engine is: seconds of a denoising step and of a decoding, and the picture they made."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from msgspec.structs import replace

from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Engine, Generate
from gguf_imagegen.vocabulary.errors import GenerationFailed
from gguf_imagegen.vocabulary.events import Made, Progress, Timings

LEAST_STEPS: Final = 3
ENOUGH_SECONDS: Final = 3.0
"""So much sampling is measured of a fast model, in as many pictures as that takes."""
FLAT: Final = 1.0
"""Standard deviation of 8-bit values below which a picture shows nothing, e.g. one of NaN."""

OnStep = Callable[[int], None]
"""Told how many steps were measured so far; 0 when the engine begins to warm up."""


@dataclass(frozen=True)
class Effort:
    """At least so many steps, and at least so many seconds of sampling."""

    steps: int = LEAST_STEPS
    seconds: float = ENOUGH_SECONDS


@dataclass(frozen=True)
class Picture:
    """One picture, and the seconds of each of its denoising steps."""

    image: RawImage
    timings: Timings
    steps: tuple[float, ...]

    @property
    def decode(self) -> float:
        return self.timings.decoding_ms / 1000


@dataclass(frozen=True)
class Speed:
    """Medians, in seconds, and the RGB of the last picture."""

    step: float
    decode: float
    conditioning: float
    steps_measured: int
    rgb: bytes = field(repr=False)

    def picture(self, steps: int) -> float:
        """Seconds of a picture of so many steps, its prompt not counted."""
        return steps * self.step + self.decode


async def measure(
    engine: Engine, spec: Generate, effort: Effort, on_step: OnStep = lambda done: None
) -> Speed:
    """The speed of pictures like `spec`; the engine should be warm."""
    pictures: list[Picture] = []
    steps: list[float] = []
    while len(steps) < effort.steps or sum(steps) < effort.seconds:
        pictures.append(await make(engine, spec))
        steps += pictures[-1].steps
        on_step(len(steps))
    return Speed(
        step=statistics.median(steps),
        decode=statistics.median(each.decode for each in pictures),
        conditioning=statistics.median(each.timings.conditioning_ms / 1000 for each in pictures),
        steps_measured=len(steps),
        rgb=pictures[-1].image.data,
    )


async def make(engine: Engine, spec: Generate) -> Picture:
    made, steps, before = None, list[float](), 0.0
    async for event in engine.run(spec):
        match event:
            case Progress(phase="sampling", step=step, seconds_per_step=average) if step > 0:
                steps.append(step * average - before)  # the engine tells the average since the first step
                before = step * average
            case Made():
                made = event
    if made is None or not steps:
        raise GenerationFailed("The engine made no picture.")
    return Picture(made.artifact, made.timings, tuple(steps))


def warm_up(spec: Generate) -> Generate:
    """The same with one step; some schedules need more, so it takes the plain one."""
    return replace(spec, steps=1, schedule="default")


def is_flat(rgb: bytes) -> bool:
    """One colour all over: nothing was drawn."""
    pixels = np.frombuffer(rgb, np.uint8).reshape(-1, 3)
    return float(pixels.std(axis=0).max()) < FLAT
