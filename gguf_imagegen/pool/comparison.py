"""How near a converted model's pictures stay to those of its source: one each, by engines of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.engines.conversion import OnProgress
from gguf_imagegen.engines.making import make
from gguf_imagegen.pictures.nearness import is_flat, psnr
from gguf_imagegen.planning.specimen import Specimen, specimen
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Engine
from gguf_imagegen.vocabulary.errors import (
    ConversionFailed,
    InsufficientMemory,
    InvalidModelFile,
    MissingComponent,
)

SIZE: Final = "256x256"
STEPS: Final = 4
"""Of the pictures that are compared: small, for both models make one."""


@dataclass(frozen=True)
class Likeness:
    """`psnr` in dB, None where nothing was compared; `words` say why."""

    psnr: float | None
    words: str = ""


async def compared(
    source: Entry, result: Entry, settings: Settings, engine: Callable[[], Engine], tell: OnProgress
) -> Likeness:
    """A picture of either model with the same prompt and seed; ConversionFailed if the result draws none."""
    try:
        specimens = [await asyncio.to_thread(_specimen, entry, settings) for entry in (source, result)]
    except (InvalidModelFile, MissingComponent, InsufficientMemory) as exc:
        return Likeness(None, str(exc))
    pictures = []
    for number, each in enumerate(specimens):
        tell("comparing", number, 2)
        pictures.append(await _picture(engine(), each))
    if is_flat(pictures[0]):
        return Likeness(None, "the source draws one colour, which says nothing")
    if is_flat(pictures[1]):
        raise ConversionFailed("The result draws nothing; take a larger type, or --rules for some tensors.")
    return Likeness(psnr(*pictures))


def _specimen(entry: Entry, settings: Settings) -> Specimen:
    return specimen(Catalog([entry], settings.models_dir), entry, settings, STEPS, SIZE)


async def _picture(engine: Engine, each: Specimen) -> bytes:
    try:
        async for _ in engine.load(each.model):
            pass
        return (await make(engine, each.picture)).image.data
    finally:
        await engine.close()
