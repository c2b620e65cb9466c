"""Pictures at the door: untrusted bytes in, the exact pixels an engine takes out.

All functions are pure and safe to call from any thread. Decoded images have the mode RGB or RGBA.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, ImageOps

from gguf_imagegen.pictures import containers, infotext
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.errors import InvalidImage

Size = tuple[int, int]
READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
LEAST_SIDE = 8
SHRINK_GAP = 3
"""A picture is shrunk by whole factors while it is decoded, to no less than so many times what is needed: the
rest is for a better filter (as Pillow's `reducing_gap` has it).
"""
MAX_WEBP_PIXELS = 1 << 24
"""libwebp decodes into several canvases at once, and Pillow holds the interpreter meanwhile."""
MAX_RLE_PIXELS = 1 << 22
"""Pillow unpacks these in Python."""
_STRIP_PIXELS = 1 << 20
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture upright, by its EXIF orientation."""


@dataclass(frozen=True)
class Header:
    """What a file says of its picture: the size upright, and about how many bytes it takes to decode it."""

    size: Size
    may_be_transparent: bool
    memory: int


def inspect(data: bytes, *, max_pixels: int, param: str, max_aspect: float = 8.0) -> Header:
    """The header of a usable picture, without any pixel. Raises InvalidImage as `decode` does."""
    image = _open(data, param)
    size = _upright(image)
    _check_size(size, max_pixels, max_aspect, param)
    _check_decoder(image, param)
    each = 16 if image.format == "WEBP" else 12 if image.info.get("progressive") else 4
    return Header(size, image.has_transparency_data, each * size[0] * size[1])


def decode(
    data: bytes, *, max_pixels: int, param: str, max_aspect: float = 8.0, enough: Size | None = None
) -> Image.Image:
    """The first frame, upright. Sizes are checked in the header, before any pixel is decoded.

    With `enough` a picture that is much larger comes smaller, but never below SHRINK_GAP times that size.
    Raises InvalidImage for anything that is not a whole PNG, JPEG, WebP, GIF, BMP or TIFF of a usable size.
    """
    image = _open(data, param)
    _check_size(_upright(image), max_pixels, max_aspect, param)
    _check_decoder(image, param)
    turn = _TURNS.get(_orientation(image))
    if enough is not None and _upright(image) != image.size:
        enough = enough[1], enough[0]
    try:
        picture = _loaded(image, enough)
        return picture.transpose(turn) if turn is not None else picture
    except Exception as exc:  # on hostile bytes Pillow's decoders raise nearly any class
        raise InvalidImage(f"the file is damaged or cut short ({exc})", param=param) from exc


def has_transparency(image: Image.Image) -> bool:
    """True if any pixel is less than opaque; an alpha channel of all 255 does not count."""
    return image.mode == "RGBA" and any(
        int(strip.getchannel("A").getextrema()[0]) < 255  # type: ignore[arg-type]  # one band, so numbers
        for _, strip in _strips(image)
    )


def may_be_transparent(data: bytes) -> bool:
    """By the header alone; False for what is no image, which `decode` refuses."""
    try:
        return _open(data, "image").has_transparency_data
    except InvalidImage:
        return False


def flatten(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """RGB, with what is transparent laid on `background`."""
    if image.mode != "RGBA":
        return image if image.mode == "RGB" else image.convert("RGB")
    flat = Image.new("RGB", image.size, background)
    flat.paste(image, mask=image)
    return flat


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """RGB of exactly this size: the largest centred part of that aspect, resized."""
    return ImageOps.fit(flatten(image), (width, height), Image.Resampling.LANCZOS)


def to_raw(image: Image.Image) -> RawImage:
    return RawImage(image.width, image.height, 3, flatten(image).tobytes())


def pad(image: RawImage, width: int, height: int) -> RawImage:
    """The image in the middle of `width` x `height`, its border pixels repeated; undone by `centre_crop`."""
    if (image.width, image.height) == (width, height):
        return image
    pixels = pixels_of(image.data, image.width, image.height, image.channels)
    left, top = (width - image.width) // 2, (height - image.height) // 2
    around = ((top, height - image.height - top), (left, width - image.width - left), (0, 0))
    padded = np.pad(pixels.reshape(image.height, image.width, image.channels), around, mode="edge")
    return RawImage(width, height, image.channels, padded.tobytes())


def edit_size(
    image_size: Size, pixel_budget: int, multiple: int, max_side: int, *, down: bool = False
) -> Size:
    """The input's aspect at about the model's pixel budget, each side a multiple and at most `max_side`.

    With `down` each side is rounded down, so that the budget is never exceeded.
    """
    width, height = image_size
    scale = min(math.sqrt(pixel_budget / (width * height)), max_side / max(width, height))

    def side(length: int) -> int:
        times = length * scale / multiple
        times = math.floor(times + 1e-9) if down else round(times)
        return max(1, min(times, max_side // multiple)) * multiple

    return side(width), side(height)


def read_parameters(data: bytes, *, param: str = "image") -> str | None:
    """The `parameters` text of a file, if it has one. Raises InvalidImage if it is no image."""
    image = _open(data, param)
    try:
        return infotext.read(image)
    except Exception as exc:  # as in `decode`: EXIF is hostile bytes too
        raise InvalidImage(f"its metadata is damaged ({exc})", param=param) from exc


def pixels_of(data: bytes, width: int, height: int, channels: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).reshape(height, width, channels)


def _open(data: bytes, param: str) -> ImageFile.ImageFile:
    """The header only. What the bytes say counts, no file name and no declared type."""
    if not data:
        raise InvalidImage("the file is empty", param=param)
    try:
        containers.check(data)
        image = _recognised(data, param)
        _find_exif(image, data)
    except ValueError as exc:
        raise InvalidImage(str(exc), param=param) from None
    return image


def _recognised(data: bytes, param: str) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=READABLE)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise InvalidImage("it has too many pixels; send a smaller one", param=param) from exc
    except Exception as exc:  # as in `decode`
        raise InvalidImage("this is not a PNG, JPEG, WebP, GIF, BMP or TIFF image", param=param) from exc


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


def _check_decoder(image: ImageFile.ImageFile, param: str) -> None:
    """Some decoders cannot be let loose on everything that may be large."""
    packed = any(tile.codec_name == "bmp_rle" for tile in image.tile)
    most = MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_RLE_PIXELS if packed else None
    if most is not None and image.width * image.height > most:
        what = "WebP" if image.format == "WEBP" else "run-length coded BMP"
        raise InvalidImage(
            f"{image.width}x{image.height} is too large for {what}, at most {most} pixels; send PNG or JPEG",
            param=param,
        )


def _loaded(image: ImageFile.ImageFile, enough: Size | None) -> Image.Image:
    """RGB or RGBA, shrunk as far as `enough` allows, without a second copy of a large picture."""
    if enough is not None:
        image.draft(None, (enough[0] * SHRINK_GAP, enough[1] * SHRINK_GAP))
    image.load()
    factor = 1
    if enough is not None:
        factor = max(
            1, min(image.width // (enough[0] * SHRINK_GAP), image.height // (enough[1] * SHRINK_GAP))
        )
    mode = "RGBA" if image.has_transparency_data else "RGB"
    if factor == 1:
        return image if image.mode == mode and image.format != "WEBP" else _as_rgb(image)
    small = Image.new(mode, (-(-image.width // factor), -(-image.height // factor)))
    for top, strip in _strips(image, factor):
        small.paste(_as_rgb(strip).reduce(factor), (0, top // factor))
    return small


def _strips(image: Image.Image, multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """The picture from top to bottom in pieces of some rows, a multiple of this."""
    rows = multiple * max(1, _STRIP_PIXELS // (image.width * multiple))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _upright(image: ImageFile.ImageFile) -> Size:
    return (image.height, image.width) if _orientation(image) >= 5 else image.size


def _orientation(image: ImageFile.ImageFile) -> int:
    """By EXIF or XMP; 1 is upright. Pillow sets a TIFF upright itself."""
    if image.format == "TIFF":
        return 1
    try:
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF is hostile bytes, too, and a picture can be read without it
        return 1
    return found if found in _TURNS else 1


def _find_exif(image: ImageFile.ImageFile, data: bytes) -> None:
    """Put its EXIF block, wherever in the file, into `info`; ValueError if there is too much in it."""
    profile = image.info.pop("Raw profile type exif", None)
    found = image.info.get("exif") or containers.png_exif(data) or _from_hex(profile)
    if found:
        containers.check_exif(found)
        image.info["exif"] = found


def _from_hex(profile: object) -> bytes:
    """The block that ImageMagick writes as a text: three lines, then hexadecimal ones."""
    try:
        return bytes.fromhex("".join(str(profile).split("\n")[3:])) if profile else b""
    except ValueError:
        return b""


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("32-bit samples; send 8 or 16 bits a channel")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
