"""Backends for nodes of a cluster, whose engines need no model files of a real size and no processor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from gguf_imagegen.engines.sdcpp.backend import SdCpp
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Engine, Generate
from gguf_imagegen.vocabulary.events import EngineEvent, Made, Notice, Progress, Timings
from tests.fake_engines import QuickEngine


class Tinted(QuickEngine):
    """Its pictures show the seed, and take `SECONDS` a step."""

    SECONDS = 0.0

    async def generate(self, spec: Generate) -> AsyncIterator[EngineEvent]:
        for index in range(spec.first, spec.n):
            for step in range(1, spec.steps + 1):
                await self.at_step(step)
                yield Progress(index, "sampling", step, spec.steps, 0.01)
            pixels = bytes([(spec.seed + index) % 256]) * (spec.width * spec.height * 3)
            yield Made(index, RawImage(spec.width, spec.height, 3, pixels), Timings(steps=spec.steps))

    async def at_step(self, step: int) -> None:
        if self.SECONDS:
            await self.pause(self.SECONDS)
        else:
            await asyncio.sleep(0)


class Slow(Tinted):
    SECONDS = 0.2


class Second(Tinted):
    SECONDS = 1.0


class Hanging(Tinted):
    """Says nothing any more from its second step on."""

    async def at_step(self, step: int) -> None:
        if step > 1:
            await self.pause(None)


class Telling(QuickEngine):
    """Says which add-ons it has got: names of files, and of the tensors that are renamed."""

    async def generate(self, spec: Generate) -> AsyncIterator[EngineEvent]:
        for lora in spec.loras:
            yield Notice(f"{lora.path.parent.name}/{lora.path.name}: {len(lora.renamed)} renamed")
        for embedding in spec.embeddings:
            yield Notice(f"{embedding.path.parent.name}/{embedding.path.name}")
        if control := self.model.files.get("control_net"):
            yield Notice(f"{control.parent.name}/{control.name}")
        async for event in super().generate(spec):
            yield event


class Tints(SdCpp):
    """`--backend tests.far_engines:Tints`."""

    def engine(self, device: Device) -> Engine:
        return Tinted()


class Hangs(SdCpp):
    """Begins every picture, and ends none."""

    def engine(self, device: Device) -> Engine:
        return Hanging()


class Tells(SdCpp):
    """Quick, with previews."""

    def engine(self, device: Device) -> Engine:
        return Telling()


class Slows(SdCpp):
    """A fifth of a second a step."""

    def engine(self, device: Device) -> Engine:
        return Slow()


class Seconds(SdCpp):
    """A second a step."""

    def engine(self, device: Device) -> Engine:
        return Second()
