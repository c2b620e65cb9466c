"""The most that a request can reach: what the model states, its family can do and this server allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.callers import Allowance
from gguf_imagegen.vocabulary.errors import InvalidSize

LEAST_SIDE = 64
MOST_ASPECT = 8
"""The longer side of an image to the shorter one."""


@dataclass(frozen=True)
class Bounds:
    """`side` and `pixels` of an image to make, denoising `steps`, `images` that one edit takes.

    `cfg_scale` is None where the model states none.
    """

    side: int
    pixels: int
    steps: int
    images: int
    cfg_scale: float | None

    @classmethod
    def of(cls, entry: Entry, settings: Settings) -> Bounds:
        """A limit that the entry does not state is the family's or the server's."""
        limits, traits = entry.limits, entry.traits
        pixels = _least(limits.max_pixels, settings.max_pixels)
        return cls(
            side=_least(limits.max_side, traits.max_side, settings.max_side, _longest(pixels)),
            pixels=pixels,
            steps=_least(limits.max_steps, settings.max_steps),
            images=_least(limits.references, traits.references) if entry.edit_mode == "reference" else 1,
            cfg_scale=limits.cfg_scale,
        )


def check_least(size: tuple[int, int], settings: Settings) -> None:
    """Raise InvalidSize below what this server's administrator wants to be asked for."""
    width, height = size
    if min(size) < settings.min_side or width * height < settings.min_pixels:
        raise InvalidSize(
            f"size: {width}x{height} is too small; this server makes images of at least {settings.min_side} a"
            f" side and {settings.min_pixels} pixels",
            param="size",
        )


def within(settings: Settings, allowance: Allowance) -> Settings:
    """The server's settings with the limits of one caller."""
    pixels = allowance.megapixels and int(allowance.megapixels * 1_000_000)
    own = {"max_images": allowance.images, "max_pixels": pixels, "max_steps": allowance.steps}
    return settings.model_copy(
        update={name: min(limit, getattr(settings, name)) for name, limit in own.items() if limit is not None}
    )


def _least(*limits: int | None) -> int:
    return min(limit for limit in limits if limit is not None)


def _longest(pixels: int) -> int:
    """The side of an image of so many pixels that is as narrow as it may be."""
    return min(MOST_ASPECT * math.isqrt(pixels // MOST_ASPECT), pixels // LEAST_SIDE)
