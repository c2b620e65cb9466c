"""A picture that an engine makes for nobody: to measure it, or to compare it."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Engine, Generate
from gguf_imagegen.vocabulary.errors import GenerationFailed
from gguf_imagegen.vocabulary.events import Made, Progress, Timings


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
