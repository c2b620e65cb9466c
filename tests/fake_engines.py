"""Small engines: one that works in no time, and one for each way to let a server down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.engines.sdcpp.backend import SdCpp
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Convert, Edges, Engine, Generate, LoadSpec, Read, Task, Upscale
from gguf_imagegen.vocabulary.errors import GenerationFailed, ModelLoadFailed, WorkerCrashed
from gguf_imagegen.vocabulary.events import (
    EngineEvent,
    Loaded,
    Loading,
    Made,
    PhaseChanged,
    Preview,
    Progress,
    Timings,
)


class QuickEngine:
    """Makes grey images at once. Implements `vocabulary.engine.Engine`; the others differ in one point."""

    model: LoadSpec
    """What was loaded last."""

    def __init__(self) -> None:
        self._started = False
        self._closed = asyncio.Event()

    @property
    def alive(self) -> bool:
        return self._started and not self._closed.is_set()

    async def close(self) -> None:
        self._closed.set()

    async def load(self, model: LoadSpec) -> AsyncIterator[EngineEvent]:
        self.model = model
        self._started = True
        file = model.files["model"].name
        yield Loading(file, 0, 2)
        await self.at_load()
        yield Loading(file, 2, 2)
        yield Loaded(0.01, "fake", "FAKE")

    async def run(self, task: Task) -> AsyncIterator[EngineEvent]:
        match task:
            case Generate():
                events = self.generate(task)
            case Upscale():
                events = self.upscale(task)
            case Edges():
                events = self.edges(task)
            case Read() | Convert():
                raise AssertionError("no lane is asked to read or to convert")
        async for event in events:
            yield event

    async def generate(self, spec: Generate) -> AsyncIterator[EngineEvent]:
        last = spec.hires or spec
        pixels = bytes([128]) * (spec.width * spec.height * 3)
        timings = Timings(2.0, 10.0 * spec.sampling_steps, 3.0, 10.0 * spec.sampling_steps + 5, spec.steps)
        for index in range(spec.first, spec.n):
            yield PhaseChanged(index, "conditioning")
            yield PhaseChanged(index, "sampling")
            for step in range(1, spec.steps + 1):
                await self.at_step(step)
                yield Progress(index, "sampling", step, spec.steps, 0.01)
                if spec.preview != "none" and (not spec.preview_steps or step in spec.preview_steps):
                    yield Preview(index, step, spec.steps, RawImage(spec.width, spec.height, 3, pixels))
            yield PhaseChanged(index, "decoding")
            made = bytes([128]) * (last.width * last.height * 3)
            yield Made(index, RawImage(last.width, last.height, 3, made), timings)

    async def upscale(self, spec: Upscale) -> AsyncIterator[EngineEvent]:
        self._started = True
        yield PhaseChanged(spec.index, "upscaling")
        await self.at_step(1)
        larger = RawImage(2 * spec.image.width, 2 * spec.image.height, 3, 4 * spec.image.data)
        yield Made(spec.index, larger)

    async def edges(self, spec: Edges) -> AsyncIterator[EngineEvent]:
        yield Made(0, spec.image)

    async def at_load(self) -> None:
        """Called in the middle of a load."""

    async def at_step(self, step: int) -> None:
        """Called before each denoising step."""

    async def pause(self, seconds: float | None) -> None:
        """Do nothing for so long, None for ever; like any wait for an engine, it ends with the engine."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)
        if self._closed.is_set():
            raise WorkerCrashed("The engine was closed.")


class SeeingEngine(QuickEngine):
    """Keeps what it is asked to load and to do."""

    def __init__(self, seen: list[object]) -> None:
        super().__init__()
        self._seen = seen

    async def load(self, model: LoadSpec) -> AsyncIterator[EngineEvent]:
        self._seen.append(model)
        async for event in super().load(model):
            yield event

    async def generate(self, spec: Generate) -> AsyncIterator[EngineEvent]:
        self._seen.append(spec)
        async for event in super().generate(spec):
            yield event


class FakeBackend(SdCpp):
    """stable-diffusion.cpp's abilities and devices, and engines of another make."""

    def __init__(self, settings: Settings, make: Callable[[], Engine]) -> None:
        super().__init__(settings)
        self._make = make

    def abilities(self) -> Abilities:
        return ABILITIES

    def engine(self, device: Device) -> Engine:
        return self._make()


class SlowEngine(QuickEngine):
    """Takes half a second to load, and as long for each step."""

    SECONDS = 0.5

    async def at_load(self) -> None:
        await self.pause(self.SECONDS)

    async def at_step(self, step: int) -> None:
        await self.pause(self.SECONDS)


class NeverLoads(QuickEngine):
    """Begins to load, and says no more."""

    async def at_load(self) -> None:
        await self.pause(None)


class NeverAnswers(QuickEngine):
    """Loads, begins to sample, and says no more."""

    async def at_step(self, step: int) -> None:
        await self.pause(None)


class MissesCancel(NeverLoads):
    """Goes on loading after the first cancellation, as if that had come in the moment of an event."""

    async def at_load(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await asyncio.sleep(3600)


class CannotLoad(QuickEngine):
    """Reports that the model cannot be loaded."""

    async def at_load(self) -> None:
        raise ModelLoadFailed("The model could not be loaded: wrong tensors.")


class CrashesAtLoad(QuickEngine):
    """Dies in the middle of a load."""

    async def at_load(self) -> None:
        await self.close()
        raise WorkerCrashed("The engine stopped unexpectedly (SIGSEGV).")


class CrashesAtStep(QuickEngine):
    """Dies before the second step."""

    async def at_step(self, step: int) -> None:
        if step == 2:
            await self.close()
            raise WorkerCrashed("The engine stopped unexpectedly (SIGSEGV).")


class FailsGeneration(QuickEngine):
    """Reports a failure before the second step, and lives on."""

    async def at_step(self, step: int) -> None:
        if step == 2:
            raise GenerationFailed("The image could not be generated: out of paint.")
