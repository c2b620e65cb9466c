"""A second pass at a larger size: which size that is, and how it gets there."""

from __future__ import annotations

import re
from pathlib import Path

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.planning import sampling
from gguf_imagegen.planning.addons import named_file
from gguf_imagegen.planning.canvas import Canvas, hires_canvas
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.engine import Hires


def last_canvas(
    request: ImageRequest, entry: Entry, settings: Settings, canvas: Canvas, notes: list[str]
) -> Canvas:
    """Of the last pass: the second one, if there is one."""
    if request.hires is None:
        return canvas
    first = canvas.aligned if canvas.drawn == canvas.delivered else canvas.delivered
    width, height = (round(side * request.hires.scale) for side in first)
    asked = request.hires.width or width, request.hires.height or height
    return hires_canvas(asked, entry, settings, notes)


def second_pass(
    request: ImageRequest,
    entry: Entry,
    settings: Settings,
    canvas: Canvas,
    steps: int,
    notes: list[str],
    able: Abilities,
) -> Hires | None:
    """The second pass; sd.cpp takes the last `steps` of a schedule of `steps / denoising_strength`."""
    if request.hires is None:
        return None
    steps = sampling.checked_steps(request.hires.steps or steps, entry, settings, "hires", notes)
    upscaler, model = _hires_upscaler(request.hires.upscaler, settings, able)
    return Hires(
        width=canvas.aligned[0],
        height=canvas.aligned[1],
        steps=steps,
        denoising_strength=request.hires.denoising_strength,
        upscaler=upscaler,
        model=model,
        tile=request.hires.upscale_tile_size,
    )


def _hires_upscaler(name: str, settings: Settings, able: Abilities) -> tuple[str, Path | None]:
    """The engine's name of a built-in one, which others spell with blanks, or "model" and its file."""
    plain = re.sub(r"[^a-z]+", "_", name.lower()).strip("_")
    if plain in able.upscalers:
        return plain, None
    return "model", named_file(name, settings.upscaler_dir, "upscaler")
