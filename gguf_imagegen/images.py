"""Pictures at the door: untrusted bytes in, the exact pixels an engine takes, and encoded files out.

All functions are pure and safe to call from any thread. Decoded images have the mode RGB or RGBA.
"""

from __future__ import annotations

import base64
import io
import math
import re
from typing import Literal
from urllib.parse import unquote_to_bytes

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps

from gguf_imagegen import metadata
from gguf_imagegen.engine.protocol import RawImage
from gguf_imagegen.errors import InvalidImage, InvalidRequest

ImageFormat = Literal["png", "jpeg", "webp"]
Size = tuple[int, int]

READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
LEAST_SIDE = 8
MASK_THRESHOLD = 128
MASK_ASPECT_TOLERANCE = 0.02


def decode(data: bytes, *, max_pixels: int, param: str, max_aspect: float = 8.0) -> Image.Image:
    """The first frame, upright. Sizes are checked in the header, before any pixel is decoded.

    Raises InvalidImage for anything that is not a whole PNG, JPEG, WebP, GIF, BMP or TIFF of a usable size.
    """
    image = _open(data, param)
    _check_size(image.size, max_pixels, max_aspect, param)
    try:
        image.load()
        return _as_rgb(ImageOps.exif_transpose(image))
    except Exception as exc:  # on hostile bytes Pillow's decoders raise nearly any class
        raise InvalidImage(f"the file is damaged or cut short ({exc})", param=param) from exc


def decode_data_url(text: str, param: str) -> bytes:
    """The bytes in a data: URL or in bare base64, standard or URL-safe, with or without padding."""
    text = text.strip()
    if text[:5].lower() == "data:":
        head, comma, payload = text.partition(",")
        if not comma:
            raise InvalidImage("a data: URL has a comma before its data, and this one has none", param=param)
        content = unquote_to_bytes(payload)
        is_base64 = head.lower().endswith(";base64")
        return _from_base64(content.decode("latin-1"), param) if is_base64 else content
    if re.match(r"(?i)[a-z][a-z0-9+.-]*:", text):
        raise InvalidRequest(
            "This server fetches no URLs; send the image's bytes, as a file or as base64.", param=param
        )
    return _from_base64(text, param)


def has_transparency(image: Image.Image) -> bool:
    """True if any pixel is less than opaque; an alpha channel of all 255 does not count."""
    return image.mode == "RGBA" and min(image.getchannel("A").tobytes()) < 255


def may_be_transparent(data: bytes) -> bool:
    """By the header alone; False for what is no image, which `decode` refuses."""
    try:
        return _open(data, "image").has_transparency_data
    except InvalidImage:
        return False


def flatten(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """RGB, with what is transparent laid on `background`."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    flat = Image.new("RGB", image.size, background)
    flat.paste(image, mask=image.getchannel("A"))
    return flat


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """RGB of exactly this size: the largest centred part of that aspect, resized."""
    return ImageOps.fit(flatten(image), (width, height), Image.Resampling.LANCZOS)


def resized(image: RawImage, width: int, height: int) -> RawImage:
    """RGB of exactly this size, by Lanczos; the same object where that is its size."""
    if (image.width, image.height) == (width, height):
        return image
    picture = Image.frombytes("RGB", (image.width, image.height), image.data)
    return to_raw(picture.resize((width, height), Image.Resampling.LANCZOS))


def to_raw(image: Image.Image) -> RawImage:
    return RawImage(image.width, image.height, 3, flatten(image).tobytes())


def mask_from(mask: Image.Image | None, image: Image.Image, size: Size) -> RawImage | None:
    """255 = repaint, 0 = keep, cropped and resized to `size` as `fit` does with the image.

    A mask with real transparency follows OpenAI (alpha 0 = repaint), any other follows AUTOMATIC1111
    (white = repaint). Without a mask the image's own transparency is one; None if it has none to speak of.
    """
    if mask is None:
        own = _binary_mask(image, size) if has_transparency(image) else None
        return own if own and any(own.data) else None
    _check_mask_aspect(mask.size, image.size)
    result = _binary_mask(mask, size)
    if not any(result.data):
        raise InvalidRequest(
            "The mask selects nothing: make the area to repaint white, or fully transparent.", param="mask"
        )
    return result


def composite(generated_rgb: bytes, width: int, height: int, original: RawImage, mask: RawImage) -> bytes:
    """The generated pixels where the mask is white, and the original's own bytes where it is black."""
    repaint = _pixels(mask.data, width, height, 1) >= MASK_THRESHOLD
    generated = _pixels(generated_rgb, width, height, 3)
    return np.where(repaint, generated, _pixels(original.data, width, height, 3)).tobytes()


def centre_crop(rgb: bytes, width: int, height: int, out_width: int, out_height: int) -> bytes:
    if out_width > width or out_height > height:
        raise ValueError(f"cannot crop {width}x{height} to {out_width}x{out_height}")
    left, top = (width - out_width) // 2, (height - out_height) // 2
    pixels = _pixels(rgb, width, height, 3)
    return pixels[top : top + out_height, left : left + out_width].tobytes()


def edit_size(image_size: Size, pixel_budget: int, multiple: int, max_side: int) -> Size:
    """The input's aspect at about the model's pixel budget, each side a multiple and at most `max_side`."""
    width, height = image_size
    scale = min(math.sqrt(pixel_budget / (width * height)), max_side / max(width, height))

    def side(length: int) -> int:
        return max(1, min(round(length * scale / multiple), max_side // multiple)) * multiple

    return side(width), side(height)


def encode(
    rgb: bytes,
    width: int,
    height: int,
    *,
    format: ImageFormat,
    compression: int | None = None,
    parameters: str | None = None,
) -> bytes:
    """A file of this format with the `parameters` text inside.

    `compression` is OpenAI's output_compression, 0-100: the quality of JPEG and WebP (100 is best). PNG is
    always lossless; there it is the effort, and the default is a fast one.
    """
    image = Image.frombytes("RGB", (width, height), rgb)
    out = io.BytesIO()
    match format:
        case "png":
            level = 1 if compression is None else round(compression * 9 / 100)
            chunks = metadata.png_text(parameters) if parameters else None
            image.save(out, "PNG", compress_level=level, pnginfo=chunks)
        case "jpeg" | "webp":
            quality = 92 if compression is None else compression
            exif = metadata.exif(parameters) if parameters else b""
            image.save(out, format, quality=quality, exif=exif)
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


def read_parameters(data: bytes, *, param: str = "image") -> str | None:
    """The `parameters` text of a file, if it has one. Raises InvalidImage if it is no image."""
    image = _open(data, param)
    try:
        return metadata.read(image)
    except Exception as exc:  # as in `decode`: EXIF is hostile bytes too
        raise InvalidImage(f"its metadata is damaged ({exc})", param=param) from exc


def content_type(format: ImageFormat) -> str:
    return f"image/{format}"


def _open(data: bytes, param: str) -> ImageFile.ImageFile:
    """The header only. What the bytes say counts, no file name and no declared type."""
    if not data:
        raise InvalidImage("the file is empty", param=param)
    try:
        return Image.open(io.BytesIO(data), formats=READABLE)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise InvalidImage("it has too many pixels; send a smaller one", param=param) from exc
    except Exception as exc:  # as in `decode`
        raise InvalidImage("these bytes are no PNG, JPEG, WebP, GIF, BMP or TIFF image", param=param) from exc


def _check_size(size: Size, max_pixels: int, max_aspect: float, param: str) -> None:
    width, height = size
    if width * height > max_pixels:
        reason = f"{width}x{height} is more than the {max_pixels} pixels allowed; send a smaller one"
    elif min(size) < LEAST_SIDE:
        reason = f"{width}x{height} is too small; each side needs at least {LEAST_SIDE} pixels"
    elif max(size) > max_aspect * min(size):
        reason = f"{width}x{height} is too narrow; the longer side may be {max_aspect:g} times the shorter"
    else:
        return
    raise InvalidImage(reason, param=param)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("32-bit samples; send 8 or 16 bits a channel")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _from_base64(text: str, param: str) -> bytes:
    packed = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except ValueError as exc:
        raise InvalidImage("the text is not base64", param=param) from exc


def _check_mask_aspect(mask: Size, image: Size) -> None:
    if abs(mask[0] * image[1] / (mask[1] * image[0]) - 1) > MASK_ASPECT_TOLERANCE:
        raise InvalidRequest(
            f"The mask is {mask[0]}x{mask[1]} but the image is {image[0]}x{image[1]}; "
            "send a mask of the image's size.",
            param="mask",
        )


def _binary_mask(image: Image.Image, size: Size) -> RawImage:
    grey = ImageOps.invert(image.getchannel("A")) if has_transparency(image) else image.convert("L")
    fitted = ImageOps.fit(grey, size, Image.Resampling.BOX)
    binary = fitted.point([255 if value >= MASK_THRESHOLD else 0 for value in range(256)])
    return RawImage(*size, 1, binary.tobytes())


def _pixels(data: bytes, width: int, height: int, channels: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).reshape(height, width, channels)


def pad(image: RawImage, width: int, height: int) -> RawImage:
    """The image in the middle of `width` x `height`, its border pixels repeated; undone by `centre_crop`."""
    if (image.width, image.height) == (width, height):
        return image
    pixels = _pixels(image.data, image.width, image.height, image.channels)
    left, top = (width - image.width) // 2, (height - image.height) // 2
    around = ((top, height - image.height - top), (left, width - image.width - left), (0, 0))
    padded = np.pad(pixels.reshape(image.height, image.width, image.channels), around, mode="edge")
    return RawImage(width, height, image.channels, padded.tobytes())
