"""A backend without work of its own: what a benchmark with it measures is the server."""

from __future__ import annotations

from collections.abc import AsyncIterator

from gguf_imagegen.engines.sdcpp.backend import SdCpp
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Engine, Generate, LoadSpec, Task
from gguf_imagegen.vocabulary.events import (
    EngineEvent,
    Loaded,
    Made,
    PhaseChanged,
    Preview,
    Progress,
    Timings,
)


class Grey(SdCpp):
    """The devices and abilities of stable-diffusion.cpp, and grey pictures."""

    def engine(self, device: Device) -> Engine:
        return GreyEngine()


class GreyEngine:
    """Implements `vocabulary.engine.Engine`."""

    alive = False

    async def load(self, spec: LoadSpec) -> AsyncIterator[EngineEvent]:
        self.alive = True
        yield Loaded(0.0, "grey", "CPU")

    async def run(self, task: Task) -> AsyncIterator[EngineEvent]:
        assert isinstance(task, Generate)
        grey = RawImage(task.width, task.height, 3, bytes([128]) * (3 * task.width * task.height))
        for index in range(task.n):
            yield PhaseChanged(index, "sampling")
            for step in range(1, task.steps + 1):
                yield Progress(index, "sampling", step, task.steps, 0.001)
                if task.preview != "none":
                    yield Preview(index, step, task.steps, grey)
            yield Made(index, grey, Timings(0, 1, 0, 1, task.steps))

    async def close(self) -> None:
        self.alive = False
