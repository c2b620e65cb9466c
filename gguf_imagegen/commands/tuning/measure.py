"""How fast a loaded engine is: seconds of a denoising step and of a decoding, and the picture they made."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from gguf_imagegen.engines.making import Picture, make
from gguf_imagegen.vocabulary.engine import Engine, Generate

LEAST_STEPS: Final = 3
ENOUGH_SECONDS: Final = 3.0
"""So much sampling is measured of a fast model, in as many pictures as that takes."""
OnStep = Callable[[int], None]
"""Told how many steps were measured so far; 0 when the engine begins to warm up."""


@dataclass(frozen=True)
class Effort:
    """At least so many steps, and at least so many seconds of sampling."""

    steps: int = LEAST_STEPS
    seconds: float = ENOUGH_SECONDS


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


def warm_up(spec: Generate) -> Generate:
    """The same with one step; some schedules need more, so it takes the plain one."""
    return replace(spec, steps=1, schedule="default")
