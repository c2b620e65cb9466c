"""What a request brings to draw from: sizes, images, masks and references, made right for the family.

How a family edits is `Traits.edit_mode` unless the catalog says otherwise, see `docs/engine.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from gguf_imagegen import images
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.engine.protocol import RawImage
from gguf_imagegen.errors import InvalidRequest, InvalidSize, UnsupportedOperation
from gguf_imagegen.jobs.bounds import LEAST_SIDE, MOST_ASPECT, Bounds
from gguf_imagegen.schema.request import ImageRequest
from gguf_imagegen.settings import Settings

Size = tuple[int, int]
REFERENCE_MULTIPLE = 32
"""Sizes that nobody asked for are multiples of this on models that edit by reference, as vLLM-Omni has it."""


def delivered_size(
    request: ImageRequest, entry: Entry, settings: Settings, pictures: list[Image.Image]
) -> Size:
    """Width and height of the result: as asked for, else the first picture's aspect, else the model's own."""
    bounds = Bounds.of(entry, settings)
    if request.size:
        width, height = request.size
    elif request.width or request.height:
        width = request.width or request.height or 0
        height = request.height or request.width or 0
    elif pictures:
        by_reference = entry.edit_mode == "reference"
        multiple = max(REFERENCE_MULTIPLE * by_reference, entry.traits.multiple)
        budget = min(entry.defaults.size[0] * entry.defaults.size[1], bounds.pixels)
        width, height = images.edit_size(pictures[0].size, budget, multiple, bounds.side)
        return max(width, LEAST_SIDE), max(height, LEAST_SIDE)
    else:
        width, height = entry.defaults.size
    if min(width, height) < LEAST_SIDE:
        raise InvalidSize(
            f"size: {width}x{height} is too small; the least side is {LEAST_SIDE}", param="size"
        )
    if max(width, height) > bounds.side or width * height > bounds.pixels:
        raise InvalidSize(
            f"size: {width}x{height} is too large for {entry.id}; at most {bounds.side} a side and"
            f" {bounds.pixels} pixels in all",
            param="size",
        )
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise InvalidSize(f"size: {width}x{height} is too narrow; at most {MOST_ASPECT}:1", param="size")
    return width, height


def align(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


@dataclass(frozen=True)
class EditInputs:
    """`init` and `init_mask` have the engine's aligned size; `original` and `mask` the delivered size, to be
    put back over the pixels that are kept.
    """

    init: RawImage | None = None
    init_mask: RawImage | None = None
    references: tuple[RawImage, ...] = ()
    original: RawImage | None = None
    mask: RawImage | None = None


def decode_images(request: ImageRequest, settings: Settings) -> list[Image.Image]:
    most = settings.max_input_pixels
    return [images.decode(data, max_pixels=most, param="image") for data in request.image]


def edit_inputs(
    request: ImageRequest,
    entry: Entry,
    settings: Settings,
    pictures: list[Image.Image],
    size: Size,
    aligned: Size,
) -> EditInputs:
    """What the engine gets of the pictures, by the way in which this model edits.

    A model that edits by reference repaints only the mask, if there is one: what lies outside starts from the
    first picture and is put back at the end.
    """
    if not pictures:
        if request.mask is not None:
            raise InvalidRequest("mask: a mask needs an image to mask", param="mask")
        return EditInputs()
    by_reference = entry.edit_mode == "reference"
    bounds = Bounds.of(entry, settings)
    if len(pictures) > bounds.images:
        raise UnsupportedOperation(
            f"image: {entry.id} edits {bounds.images} image{'s' * (bounds.images > 1)} at a time,"
            f" {len(pictures)} were sent",
            param="image",
        )
    picture = pictures[0]
    masking = (
        images.decode(request.mask, max_pixels=settings.max_input_pixels, param="mask")
        if request.mask is not None
        else None
    )
    if by_reference and masking is None:
        return EditInputs(references=_references(pictures, entry, bounds, aligned))
    mask = images.mask_from(masking, picture, size)
    original = images.to_raw(images.fit(images.flatten(picture), *size))
    return EditInputs(
        init=images.pad(original, *aligned),
        init_mask=images.pad(mask, *aligned) if mask else None,
        references=_references(pictures, entry, bounds, aligned) if by_reference else (),
        original=original if mask else None,
        mask=mask,
    )


def _references(
    pictures: list[Image.Image], entry: Entry, bounds: Bounds, aligned: Size
) -> tuple[RawImage, ...]:
    """Each in its own aspect, at about the pixels of the result; sd.cpp needs multiples of its own sizes."""
    budget, multiple = aligned[0] * aligned[1], max(REFERENCE_MULTIPLE, entry.traits.multiple)
    found = []
    for picture in pictures:
        width, height = images.edit_size(picture.size, budget, multiple, bounds.side)
        width, height = max(width, LEAST_SIDE), max(height, LEAST_SIDE)
        found.append(images.to_raw(images.fit(images.flatten(picture), width, height)))
    return tuple(found)


def control_image(
    request: ImageRequest, entry: Entry, settings: Settings, size: Size, aligned: Size
) -> RawImage | None:
    if request.control is None:
        return None
    if "control_net" not in entry.files:
        raise UnsupportedOperation(f"control: {entry.id} is served without a ControlNet", param="control")
    picture = images.decode(request.control, max_pixels=settings.max_input_pixels, param="control")
    return images.pad(images.to_raw(images.fit(images.flatten(picture), *size)), *aligned)
