"""Small copies of finished pictures, in a few widths. Pure functions, CPU-bound: call them in a thread."""

from __future__ import annotations

import io
import math

from PIL import Image

from gguf_imagegen.pictures import provenance
from gguf_imagegen.pictures.decode import decode, flatten, inspect
from gguf_imagegen.vocabulary.errors import InvalidImage

WIDTHS = (128, 256, 512, 1024)
QUALITY = 80
SMALL = 64 * 1024
"""Bytes of a picture that is sent as it is where it is no wider."""
MAX_PIXELS = 1 << 26


def step(width: int) -> int | None:
    """The width that is made where this one is wanted; None where that is the picture's own."""
    return next((each for each in WIDTHS if each >= width), None)


def make(data: bytes, width: int) -> bytes | None:
    """A WebP of this width or the picture's own, with no metadata but its source.

    None where the picture is no wider and a small file, or cannot be read.
    """
    try:
        size = inspect(data, max_pixels=MAX_PIXELS, param="image", max_aspect=math.inf).size
        if size[0] <= width and len(data) <= SMALL:
            return None
        small = min(width, size[0]), max(1, round(size[1] * min(1.0, width / size[0])))
        picture = decode(data, max_pixels=MAX_PIXELS, param="image", max_aspect=math.inf, enough=small)
    except InvalidImage:
        return None
    out = io.BytesIO()
    flatten(picture).resize(small, Image.Resampling.LANCZOS).save(
        out, "WEBP", quality=QUALITY, xmp=provenance.carried(picture.info)
    )
    return out.getvalue()
