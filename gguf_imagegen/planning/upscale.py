"""Making pictures larger after they are made, or instead of making them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gguf_imagegen.planning.addons import named_file, names_in
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import DEFAULT_TILE
from gguf_imagegen.vocabulary.errors import InvalidRequest, InvalidSize

DEFAULT_FACTOR = 4.0


@dataclass(frozen=True)
class Enlargement:
    """By the ESRGAN model at `path`, whose factor is its own; then resized to exactly `width` x `height`.

    `tile` is the side of the squares that it is computed in.
    """

    path: Path
    width: int
    height: int
    tile: int = DEFAULT_TILE


def upscale_of(
    request: ImageRequest, settings: Settings, size: tuple[int, int], *, needed: bool = False
) -> Enlargement | None:
    """What the request wants of a picture of `size`; None if it wants nothing of the kind."""
    if request.upscale is None and not needed:
        return None
    factor = request.upscale or DEFAULT_FACTOR
    width, height = (round(side * factor) for side in size)
    if width * height > settings.max_input_pixels:
        raise InvalidSize(
            f"upscale: {width}x{height} is more than the {settings.max_input_pixels} pixels allowed",
            param="upscale",
        )
    name = request.upscaler or next(iter(names_in(settings.upscaler_dir, "upscaler")), None)
    if name is None:
        raise InvalidRequest(
            "upscale: this server has no upscaler; put an ESRGAN file into the folder of --upscaler-dir",
            param="upscale",
        )
    path = named_file(name, settings.upscaler_dir, "upscaler")
    return Enlargement(path, width, height, request.upscale_tile_size)
