"""A backend for nodes of a cluster whose steps take a second, and no processor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from gguf_imagegen.engines.sdcpp.backend import SdCpp
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Engine, Generate, LoadSpec, Task
from gguf_imagegen.vocabulary.events import EngineEvent, Loaded, Made, Notice, PhaseChanged, Progress, Timings

STAMPS = "stamps"
"""The prompt of pictures of which each step is announced with the time."""


class Sleeping(SdCpp):
    """The devices and abilities of stable-diffusion.cpp."""

    def engine(self, device: Device) -> Engine:
        return SleepingEngine()


class SleepingEngine:
    """Implements `vocabulary.engine.Engine`.

    Like a GPU it does not wait for whoever reads its events: late steps do not make later ones late.
    """

    alive = False

    async def load(self, spec: LoadSpec) -> AsyncIterator[EngineEvent]:
        self.alive = True
        yield Loaded(0.0, "sleeping", "CPU")

    async def run(self, task: Task) -> AsyncIterator[EngineEvent]:
        assert isinstance(task, Generate)
        grey = RawImage(task.width, task.height, 3, bytes(3 * task.width * task.height))
        began = time.monotonic()
        for index in range(task.n):
            yield PhaseChanged(index, "sampling")
            for step in range(1, task.steps + 1):
                await asyncio.sleep(began + index * task.steps + step - time.monotonic())
                if task.prompt == STAMPS:
                    yield Notice(str(time.time()))
                yield Progress(index, "sampling", step, task.steps, 1.0)
            yield Made(index, grey, Timings(0, 1000.0 * task.steps, 0, 1000.0 * task.steps, task.steps))

    async def close(self) -> None:
        self.alive = False
