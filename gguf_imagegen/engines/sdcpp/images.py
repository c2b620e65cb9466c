"""Pictures as the native library has them: `sd_image_t`, filled and read."""

from __future__ import annotations

import ctypes
from typing import Any

from gguf_imagegen.vocabulary.artifacts import RawImage


def set_image(target: Any, image: RawImage | None, kept: list[object]) -> None:
    if image is None:
        return
    size = image.width * image.height * image.channels
    if len(image.data) != size:
        raise ValueError(
            f"an image of {image.width}x{image.height}x{image.channels} has {len(image.data)} bytes"
        )
    pixels = (ctypes.c_uint8 * size).from_buffer_copy(image.data)
    kept.append(pixels)
    target.width, target.height, target.channel = image.width, image.height, image.channels
    target.data = ctypes.cast(pixels, ctypes.POINTER(ctypes.c_uint8))


def copy_image(image: Any) -> tuple[int, int, bytes] | None:
    """Width, height and a copy of the pixels of an `sd_image_t`."""
    if not image.data or image.channel != 3:
        return None
    return image.width, image.height, ctypes.string_at(image.data, image.width * image.height * 3)


def free(pointer: Any) -> None:
    """Free what the library has allocated with malloc."""
    release = ctypes.CDLL(None).free
    release.argtypes, release.restype = [ctypes.c_void_p], None
    release(pointer)
