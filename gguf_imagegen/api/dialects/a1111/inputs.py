"""The pictures of a request of AUTOMATIC1111's as the fields `image` and `mask`."""

from __future__ import annotations

from typing import Any

from PIL import Image

from gguf_imagegen.api.dialects.a1111.request import CROP_AND_RESIZE, RESIZE_AND_FILL, A1111Request
from gguf_imagegen.pictures import decode, encode


def input_images(wanted: A1111Request, *, img2img: bool, max_pixels: int) -> dict[str, Any]:
    """The fields `image` and `mask`. CPU-bound: call it in a thread. Raises InvalidImage.

    Images are flattened onto white and, in the resize modes that do so, stretched to the size asked for. Of a
    mask with transparency the opaque part counts, of another the white one: that part is repainted.
    """
    pictures = [
        _fitted(data, wanted, max_pixels, "init_images") for data in (wanted.init_images if img2img else [])
    ]
    pictures += [(data, None) for data in wanted.extra_images]
    fields: dict[str, Any] = {"image": [data for data, _ in pictures]} if pictures else {}
    if img2img and wanted.mask is not None:
        fields["mask"] = _mask(wanted, pictures[0][1] if pictures else None, max_pixels)
    return fields


def memory_of(wanted: A1111Request, *, img2img: bool, max_pixels: int) -> int:
    """Bytes that `input_images` takes, by the headers. Raises InvalidImage for a file that cannot be used."""
    files = [("init_images", data) for data in wanted.init_images]
    files += [("mask", wanted.mask)] if wanted.mask is not None else []
    headers = [decode.inspect(data, max_pixels=max_pixels, param=param) for param, data in files if img2img]
    return max((2 * header.memory for header in headers), default=0)


def _fitted(
    data: bytes, wanted: A1111Request, max_pixels: int, param: str
) -> tuple[bytes, decode.Size | None]:
    """The file, made anew only if something changes, and its size."""
    header = decode.inspect(data, max_pixels=max_pixels, param=param)
    size = _stretched(wanted, header.size, max_pixels)
    if size == header.size and not header.may_be_transparent:
        return data, header.size
    enough = size if size != header.size else None
    picture = decode.decode(data, max_pixels=max_pixels, param=param, enough=enough)
    if size == header.size and not decode.has_transparency(picture):
        return data, header.size
    changed = decode.flatten(picture)
    return _png(changed if enough is None else changed.resize(size, Image.Resampling.LANCZOS)), size


def _stretched(wanted: A1111Request, size: decode.Size, max_pixels: int) -> decode.Size:
    """The size to which an image of this size is brought before anything else; the same for most."""
    cropped = wanted.resize_mode in (CROP_AND_RESIZE, RESIZE_AND_FILL)
    if wanted.only_masked or cropped or not (wanted.width and wanted.height):
        return size
    same_aspect = size[0] * wanted.height == size[1] * wanted.width
    return size if same_aspect or wanted.width * wanted.height > max_pixels else (wanted.width, wanted.height)


def _mask(wanted: A1111Request, size: decode.Size | None, max_pixels: int) -> bytes:
    """A grey file in which white is repainted, of the image's size."""
    picture = decode.decode(wanted.mask or b"", max_pixels=max_pixels, param="mask", enough=size)
    grey = picture.getchannel("A") if decode.has_transparency(picture) else picture.convert("L")
    if wanted.inpainting_mask_invert:
        grey = grey.point([255 - value for value in range(256)])
    if size is not None and grey.size != size:
        grey = grey.resize(size, Image.Resampling.BOX)
    return _png(grey.convert("RGB"))


def _png(picture: Image.Image) -> bytes:
    return encode.encode_picture(picture, format="png")
