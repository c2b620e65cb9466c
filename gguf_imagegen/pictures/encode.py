"""Pictures on their way out: cropped or resized to what was asked for, and encoded into files."""

from __future__ import annotations

import io
from typing import Literal

from PIL import Image, PngImagePlugin

from gguf_imagegen.pictures import infotext, provenance
from gguf_imagegen.pictures.decode import pixels_of, to_raw
from gguf_imagegen.vocabulary.artifacts import RawImage

ImageFormat = Literal["png", "jpeg", "webp"]


def centre_crop(rgb: bytes, width: int, height: int, out_width: int, out_height: int) -> bytes:
    if out_width > width or out_height > height:
        raise ValueError(f"cannot crop {width}x{height} to {out_width}x{out_height}")
    left, top = (width - out_width) // 2, (height - out_height) // 2
    pixels = pixels_of(rgb, width, height, 3)
    return pixels[top : top + out_height, left : left + out_width].tobytes()


def resized(image: RawImage, width: int, height: int) -> RawImage:
    """RGB of exactly this size, by Lanczos; the same object where that is its size."""
    if (image.width, image.height) == (width, height):
        return image
    picture = Image.frombytes("RGB", (image.width, image.height), image.data)
    return to_raw(picture.resize((width, height), Image.Resampling.LANCZOS))


def encode(
    rgb: bytes,
    width: int,
    height: int,
    *,
    format: ImageFormat,
    compression: int | None = None,
    parameters: str | None = None,
    xmp: bytes = b"",
) -> bytes:
    """A file of this format with the `parameters` text and the XMP packet inside.

    `compression` is OpenAI's output_compression, 0-100: the quality of JPEG and WebP (100 is best). PNG is
    always lossless; there it is the effort, and the default is a fast one.
    """
    picture = Image.frombytes("RGB", (width, height), rgb)
    return encode_picture(picture, format=format, compression=compression, parameters=parameters, xmp=xmp)


def encode_picture(
    image: Image.Image,
    *,
    format: ImageFormat,
    compression: int | None = None,
    parameters: str | None = None,
    xmp: bytes = b"",
) -> bytes:
    """As `encode`, of a picture that is RGB already."""
    out = io.BytesIO()
    match format:
        case "png":
            level = 1 if compression is None else round(compression * 9 / 100)
            chunks = infotext.png_text(parameters) if parameters else PngImagePlugin.PngInfo()
            if xmp:
                chunks.add_itxt(provenance.PNG_KEYWORD, xmp.decode())
            image.save(out, "PNG", compress_level=level, pnginfo=chunks)
        case "jpeg" | "webp":
            quality = 92 if compression is None else compression
            exif = infotext.exif(parameters) if parameters else b""
            image.save(out, format, quality=quality, exif=exif, xmp=xmp)
    return out.getvalue()


def encode_preview(
    rgb: bytes, width: int, height: int, *, format: ImageFormat = "jpeg", max_side: int = 512
) -> bytes:
    """A small file, quickly made: no side longer than `max_side`, no metadata."""
    image = Image.frombytes("RGB", (width, height), rgb)
    image.thumbnail((max_side, max_side), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    image.save(out, format, quality=75, method=0, compress_level=1)
    return out.getvalue()


def content_type(format: ImageFormat) -> str:
    return f"image/{format}"
