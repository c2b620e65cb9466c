"""Masks: which pixels an edit repaints, and the kept ones put back afterwards."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from gguf_imagegen.pictures.decode import Size, has_transparency, pixels_of
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.errors import InvalidRequest

MASK_THRESHOLD = 128
MASK_ASPECT_TOLERANCE = 0.02


def mask_from(mask: Image.Image | None, image: Image.Image, size: Size, blur: int = 0) -> RawImage | None:
    """255 = repaint, 0 = keep, cropped and resized to `size` as `fit` does with the image.

    With `blur`, the radius of a Gaussian in pixels, the border is soft: values between are a mixture.

    A mask with real transparency follows OpenAI (alpha 0 = repaint), any other follows AUTOMATIC1111
    (white = repaint). Without a mask the image's own transparency is one; None if it has none to speak of.
    """
    if mask is None:
        own = _binary_mask(image, size) if has_transparency(image) else None
        return _soft(own, blur) if own and any(own.data) else None
    result = _binary_mask(mask, size)
    if not any(result.data):
        raise InvalidRequest(
            "The mask selects nothing: make the area to repaint white, or fully transparent.", param="mask"
        )
    return _soft(result, blur)


def _soft(mask: RawImage, blur: int) -> RawImage:
    if not blur:
        return mask
    picture = Image.frombytes("L", (mask.width, mask.height), mask.data)
    blurred = picture.filter(ImageFilter.GaussianBlur(blur))
    return RawImage(mask.width, mask.height, 1, blurred.tobytes())


def touched(mask: RawImage) -> RawImage:
    """White wherever anything is repainted: what an engine takes."""
    white = np.where(pixels_of(mask.data, mask.width, mask.height, 1) > 0, np.uint8(255), np.uint8(0))
    return RawImage(mask.width, mask.height, 1, white.tobytes())


def filled(picture: Image.Image, mask: RawImage) -> Image.Image:
    """The picture with the colours around in the place of what is repainted: from far and faint to near.

    As AUTOMATIC1111's "fill" (modules/masking.py) has it.
    """
    keep = ImageOps.invert(Image.frombytes("L", (mask.width, mask.height), mask.data))
    kept = picture.convert("RGB")
    kept.putalpha(keep)
    result, spread = Image.new("RGBA", picture.size), kept.convert("RGBa")
    for radius, times in ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1)):
        blurred = spread.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            result.alpha_composite(blurred)
    return result.convert("RGB")


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
    """The generated pixels where the mask is white, the original's where it is black, a mixture between."""
    share = pixels_of(mask.data, width, height, 1)
    generated, kept = pixels_of(generated_rgb, width, height, 3), pixels_of(original.data, width, height, 3)
    mixed = np.where(share == 255, generated, kept)
    soft = ((share > 0) & (share < 255))[:, :, 0]
    if soft.any():
        part = share[soft].astype(np.uint16)
        mixed[soft] = (generated[soft] * part + kept[soft] * (255 - part) + 127) // 255
    return mixed.tobytes()


def _binary_mask(image: Image.Image, size: Size) -> RawImage:
    grey = ImageOps.invert(image.getchannel("A")) if has_transparency(image) else image.convert("L")
    fitted = ImageOps.fit(grey, size, Image.Resampling.BOX)
    binary = fitted.point([255 if value >= MASK_THRESHOLD else 0 for value in range(256)])
    return RawImage(*size, 1, binary.tobytes())
