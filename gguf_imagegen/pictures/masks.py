"""Masks: which pixels an edit repaints, and the kept ones put back afterwards."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from gguf_imagegen.pictures.decode import Size, has_transparency, pixels_of
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.errors import InvalidRequest

MASK_THRESHOLD = 128
MASK_ASPECT_TOLERANCE = 0.02


def mask_from(mask: Image.Image | None, image: Image.Image, size: Size) -> RawImage | None:
    """255 = repaint, 0 = keep, cropped and resized to `size` as `fit` does with the image.

    A mask with real transparency follows OpenAI (alpha 0 = repaint), any other follows AUTOMATIC1111
    (white = repaint). Without a mask the image's own transparency is one; None if it has none to speak of.
    """
    if mask is None:
        own = _binary_mask(image, size) if has_transparency(image) else None
        return own if own and any(own.data) else None
    result = _binary_mask(mask, size)
    if not any(result.data):
        raise InvalidRequest(
            "The mask selects nothing: make the area to repaint white, or fully transparent.", param="mask"
        )
    return result


def smaller(mask: RawImage, width: int, height: int) -> RawImage:
    """The mask in a smaller size, in which all that it repaints is repainted; the same object in its own."""
    if (mask.width, mask.height) == (width, height):
        return mask
    whole = Image.frombytes("L", (mask.width, mask.height), mask.data)
    fitted = whole.resize((width, height), Image.Resampling.BOX)
    return RawImage(width, height, 1, fitted.point([0, *[255] * 255]).tobytes())


def check_mask_aspect(mask: Size, image: Size) -> None:
    """Raises InvalidRequest if a mask of this size cannot be meant for such an image."""
    if abs(mask[0] * image[1] / (mask[1] * image[0]) - 1) > MASK_ASPECT_TOLERANCE:
        raise InvalidRequest(
            f"The mask is {mask[0]}x{mask[1]} but the image is {image[0]}x{image[1]}; "
            "send a mask of the image's size.",
            param="mask",
        )


def composite(generated_rgb: bytes, width: int, height: int, original: RawImage, mask: RawImage) -> bytes:
    """The generated pixels where the mask is white, and the original's own bytes where it is black."""
    repaint = pixels_of(mask.data, width, height, 1) >= MASK_THRESHOLD
    generated = pixels_of(generated_rgb, width, height, 3)
    return np.where(repaint, generated, pixels_of(original.data, width, height, 3)).tobytes()


def _binary_mask(image: Image.Image, size: Size) -> RawImage:
    grey = ImageOps.invert(image.getchannel("A")) if has_transparency(image) else image.convert("L")
    fitted = ImageOps.fit(grey, size, Image.Resampling.BOX)
    binary = fitted.point([255 if value >= MASK_THRESHOLD else 0 for value in range(256)])
    return RawImage(*size, 1, binary.tobytes())
