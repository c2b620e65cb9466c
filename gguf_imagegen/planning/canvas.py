"""What a model draws of the size that is asked for: just that, or what it can, which is enlarged to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.planning.addons import named_file
from gguf_imagegen.planning.bounds import LEAST_SIDE, MOST_ASPECT, Bounds
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidSize

Size = tuple[int, int]


@dataclass(frozen=True)
class Canvas:
    """The engine makes `aligned`, whose centre `drawn` is enlarged to `delivered` where that is larger."""

    delivered: Size
    drawn: Size
    aligned: Size


def canvas_of(asked: Size, entry: Entry, settings: Settings, notes: list[str]) -> Canvas:
    """Raises InvalidSize for a size that this server does not make, whatever the model.

    A size beyond the model is drawn in its aspect at the model's native area; one below the least is raised.
    """
    _check_server(asked, settings, "size")
    bounds = Bounds.of(entry, settings)
    size = _raised(asked, settings, notes)
    if _fits(size, entry, settings):
        return Canvas(size, size, _aligned(size, entry))
    area = math.prod(entry.native) if entry.native else bounds.pixels
    return _reduced(size, area, entry, settings, notes, "size")


def hires_canvas(asked: Size, entry: Entry, settings: Settings, notes: list[str]) -> Canvas:
    """The same for the second pass, which a model makes as large as it can, and always in aligned sizes."""
    size = _aligned(asked, entry)
    if _fits(size, entry, settings):
        return Canvas(size, size, size)
    _check_server(asked, settings, "hires")
    return _reduced(asked, Bounds.of(entry, settings).pixels, entry, settings, notes, "hires")


def enlarger(settings: Settings) -> Path | None:
    """The upscaler that the administrator chose for sizes beyond a model's; None is Lanczos.

    Raises InvalidRequest if there is none of this name.
    """
    if settings.oversize in ("lanczos", "refuse"):
        return None
    return named_file(settings.oversize, settings.upscaler_dir, "upscaler")


def _check_server(size: Size, settings: Settings, param: str) -> None:
    width, height = size
    if max(size) > MOST_ASPECT * min(size):
        raise InvalidSize(
            f"{param}: {width}x{height} is too narrow; at most {MOST_ASPECT}:1",
            param=param,
        )
    if max(size) > settings.max_side or width * height > settings.max_pixels:
        raise InvalidSize(
            f"{param}: {width}x{height} is too large for this server; at most {settings.max_side} a side and"
            f" {settings.max_pixels} pixels in all",
            param=param,
        )


def _raised(size: Size, settings: Settings, notes: list[str]) -> Size:
    """At least the least side, in this aspect."""
    if min(size) >= LEAST_SIDE:
        return size
    width, height = size
    if settings.oversize == "refuse":
        raise InvalidSize(
            f"size: {width}x{height} is too small; the least side is {LEAST_SIDE}", param="size"
        )
    scale = LEAST_SIDE / min(size)
    raised = round(width * scale), round(height * scale)
    notes.append(f"size: the least side is {LEAST_SIDE}; {width}x{height} was raised to {_text(raised)}")
    return raised


def _fits(size: Size, entry: Entry, settings: Settings) -> bool:
    sides = (entry.limits.max_side, entry.traits.max_side, settings.max_side)
    longest = min(side for side in sides if side is not None)
    return max(size) <= longest and math.prod(size) <= Bounds.of(entry, settings).pixels


def _reduced(size: Size, area: int, entry: Entry, settings: Settings, notes: list[str], param: str) -> Canvas:
    bounds = Bounds.of(entry, settings)
    if settings.oversize == "refuse":
        raise InvalidSize(
            f"{param}: {_text(size)} is too large for {entry.id}; at most {bounds.side} a side and"
            f" {bounds.pixels} pixels in all",
            param=param,
        )
    aligned = _near(size, area, entry.traits.multiple, bounds, round)
    if not _fits(aligned, entry, settings):
        aligned = _near(size, area, entry.traits.multiple, bounds, math.floor)
    drawn = _inside(size, aligned)
    notes.append(f"{param}: {entry.id} draws {_text(drawn)}; enlarged to {_text(size)}")
    return Canvas(size, drawn, aligned)


def _near(size: Size, area: int, multiple: int, bounds: Bounds, to_int: Callable[[float], int]) -> Size:
    """About this area in about this aspect, in multiples."""
    scale = min(math.sqrt(min(area, bounds.pixels) / math.prod(size)), bounds.side / max(size))
    least = align(LEAST_SIDE, multiple)
    width, height = (max(least, to_int(side * scale / multiple) * multiple) for side in size)
    return width, height


def _inside(size: Size, outer: Size) -> Size:
    """The largest of this aspect that lies within another one."""
    scale = min(outer[0] / size[0], outer[1] / size[1])
    width, height = (max(1, min(round(side * scale), most)) for side, most in zip(size, outer, strict=True))
    return width, height


def _aligned(size: Size, entry: Entry) -> Size:
    return align(size[0], entry.traits.multiple), align(size[1], entry.traits.multiple)


def align(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
