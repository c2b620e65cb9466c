"""A picture that an engine makes for nobody, and how near two of them are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Engine, Generate
from gguf_imagegen.vocabulary.errors import GenerationFailed
from gguf_imagegen.vocabulary.events import Made, Progress, Timings

SAME: Final = 100.0
"""The PSNR, in dB, that stands for pictures that are equal to the byte."""
FLAT: Final = 1.0
"""Standard deviation of 8-bit values below which a picture shows nothing, e.g. one of NaN."""


@dataclass(frozen=True)
class Picture:
    """One picture, and the seconds of each of its denoising steps."""

    image: RawImage
    timings: Timings
    steps: tuple[float, ...]

    @property
    def decode(self) -> float:
        return self.timings.decoding_ms / 1000


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


def psnr(one: bytes, other: bytes) -> float:
    """Peak signal-to-noise ratio of two pictures of one size in dB, `SAME` for equal ones."""
    if len(one) != len(other):
        return 0.0
    difference = np.frombuffer(one, np.uint8).astype(np.float64) - np.frombuffer(other, np.uint8)
    error = float(np.mean(difference**2))
    return SAME if error == 0 else min(SAME, float(10 * np.log10(255**2 / error)))


def is_flat(rgb: bytes) -> bool:
    """One colour all over: nothing was drawn."""
    pixels = np.frombuffer(rgb, np.uint8).reshape(-1, 3)
    return float(pixels.std(axis=0).max()) < FLAT
