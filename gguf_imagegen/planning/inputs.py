"""What a request brings to draw from: sizes, images, masks and references, made right for the family.

How a family edits is `Traits.edit_mode` unless the catalog says otherwise, see `docs/engine.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.pictures import decode, encode, insets, masks
from gguf_imagegen.planning.bounds import LEAST_SIDE, Bounds
from gguf_imagegen.planning.canvas import Canvas
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.errors import InvalidRequest, UnsupportedOperation

Size = tuple[int, int]
REFERENCE_MULTIPLE = 32
"""Edits that say no size are multiples of this, as vLLM-Omni has it, on models that edit by reference or make
pictures of LARGE pixels.
"""
LARGE = 1024 * 1024


@dataclass(frozen=True)
class Headers:
    """What the files of a request say of their pictures, before any pixel is decoded."""

    pictures: tuple[decode.Header, ...]
    mask: decode.Header | None
    control: decode.Header | None

    @property
    def memory(self) -> int:
        """Bytes that it takes to decode them, one after the other."""
        return max((each.memory for each in (*self.pictures, self.mask, self.control) if each), default=0)


def read_headers(request: ImageRequest, settings: Settings) -> Headers:
    """Raises InvalidImage for a file that cannot be used, InvalidRequest for a mask of nothing."""
    if request.mask is not None and not request.image:
        raise InvalidRequest("mask: a mask needs an image to mask", param="mask")

    def read(data: bytes, param: str) -> decode.Header:
        return decode.inspect(data, max_pixels=settings.max_input_pixels, param=param)

    return Headers(
        tuple(read(data, "image") for data in request.image),
        None if request.mask is None else read(request.mask, "mask"),
        None if request.control is None else read(request.control, "control"),
    )


def asked_size(
    request: ImageRequest, entry: Entry, settings: Settings, pictures: tuple[decode.Header, ...]
) -> Size:
    """Width and height as asked for, else the first picture's aspect, else the model's own."""
    if request.size:
        return request.size
    if request.width or request.height:
        return request.width or request.height or 0, request.height or request.width or 0
    if not pictures:
        return entry.defaults.size
    bounds = Bounds.of(entry, settings)
    budget = min(entry.defaults.size[0] * entry.defaults.size[1], bounds.pixels)
    coarse = entry.edit_mode == "reference" or budget >= LARGE
    multiple = max(REFERENCE_MULTIPLE * coarse, entry.traits.multiple)
    width, height = decode.edit_size(pictures[0].size, budget, multiple, bounds.side, down=coarse)
    return max(width, LEAST_SIDE), max(height, LEAST_SIDE)


@dataclass(frozen=True)
class EditInputs:
    """`init` and `init_mask` have the engine's aligned size; `original` and `mask` the delivered size, to be
    put back over the pixels that are kept. With an `inset` these are of the whole picture.
    """

    init: RawImage | None = None
    init_mask: RawImage | None = None
    references: tuple[RawImage, ...] = ()
    original: RawImage | None = None
    mask: RawImage | None = None
    inset: insets.Inset | None = None


def check_inputs(request: ImageRequest, entry: Entry, settings: Settings, headers: Headers) -> None:
    """All that can be wrong with the pictures before they are decoded."""
    pictures = headers.pictures
    if request.control is not None and entry.edit_mode == "control":
        if pictures:
            raise InvalidRequest(
                f"control: {entry.id} follows one picture; send it as 'image' or as 'control'",
                param="control",
            )
    elif request.control is not None and "control_net" not in entry.files:
        raise UnsupportedOperation(
            f"control: {entry.id} is served without a ControlNet; name one of --control-dir in control_model",
            param="control",
        )
    if not pictures:
        return
    by_tiny = "taesd" in entry.files and (entry.decoder == "tiny" or not entry.has_vae)
    if entry.traits.video_vae and by_tiny:
        raise UnsupportedOperation(
            f"image: the tiny decoder of {entry.id} cannot read pictures; use its VAE (decoder 'full')",
            param="image",
        )
    bounds = Bounds.of(entry, settings)
    if len(pictures) > bounds.images:
        raise UnsupportedOperation(
            f"image: {entry.id} edits {bounds.images} image{'s' * (bounds.images > 1)} at a time,"
            f" {len(pictures)} were sent",
            param="image",
        )
    if headers.mask is not None:
        masks.check_mask_aspect(headers.mask.size, pictures[0].size)


def edit_inputs(
    request: ImageRequest, entry: Entry, settings: Settings, headers: Headers, canvas: Canvas
) -> EditInputs:
    """What the engine gets of the pictures, by the way in which this model edits.

    A model that edits by reference repaints only the mask, if there is one: what lies outside starts from the
    first picture and is put back at the end. Each picture is decoded by itself, no larger than needed.
    """
    by_reference = bool(headers.pictures) and entry.edit_mode == "reference"
    references = _references(request, entry, settings, headers, canvas.aligned) if by_reference else ()
    follows = entry.edit_mode == "control"
    if not headers.pictures or follows or (by_reference and request.mask is None):
        return EditInputs(references=references)
    if repaints_only_masked(request):
        return _only_masked(request, settings, references, canvas.drawn, canvas.aligned)
    most, size = settings.max_input_pixels, canvas.delivered
    picture = decode.decode(request.image[0], max_pixels=most, param="image", enough=size)
    masking = (
        decode.decode(request.mask, max_pixels=most, param="mask", enough=size)
        if request.mask is not None
        else None
    )
    mask = masks.mask_from(masking, picture, size, request.mask_blur)
    fitted = decode.fit(picture, *size)
    original = decode.to_raw(fitted)
    white = masks.touched(mask) if mask else None
    begun = decode.to_raw(masks.filled(fitted, white)) if white and request.mask_fill == "fill" else original
    return EditInputs(
        init=decode.pad(encode.resized(begun, *canvas.drawn), *canvas.aligned),
        init_mask=decode.pad(masks.smaller(white, *canvas.drawn), *canvas.aligned) if white else None,
        references=references,
        original=original if mask else None,
        mask=mask,
    )


def repaints_only_masked(request: ImageRequest) -> bool:
    """Whether the part around the mask is drawn by itself, and put back into the whole picture."""
    return request.only_masked and request.mask is not None


def _only_masked(
    request: ImageRequest, settings: Settings, references: tuple[RawImage, ...], size: Size, aligned: Size
) -> EditInputs:
    """The part around the mask at the size to draw, which stands in for the first picture."""
    most = settings.max_input_pixels
    picture = decode.flatten(decode.decode(request.image[0], max_pixels=most, param="image"))
    masking = decode.decode(request.mask or b"", max_pixels=most, param="mask", enough=picture.size)
    mask = masks.mask_from(masking, picture, picture.size, request.mask_blur)
    assert mask is not None
    inset = insets.around(mask, request.only_masked_padding, size)
    part, white = insets.part_of(picture, inset, size), insets.part_of_mask(mask, inset, size)
    drawn = masks.filled(part, white) if request.mask_fill == "fill" else part
    return EditInputs(
        init=decode.pad(decode.to_raw(drawn), *aligned),
        init_mask=decode.pad(white, *aligned),
        references=(decode.pad(decode.to_raw(part), *aligned), *references[1:]) if references else (),
        original=decode.to_raw(picture),
        mask=mask,
        inset=inset,
    )


def _references(
    request: ImageRequest, entry: Entry, settings: Settings, headers: Headers, aligned: Size
) -> tuple[RawImage, ...]:
    """Each in its own aspect, at about the pixels of the result; sd.cpp needs multiples of its own sizes."""
    budget, multiple = aligned[0] * aligned[1], max(REFERENCE_MULTIPLE, entry.traits.multiple)
    side, found = Bounds.of(entry, settings).side, []
    for data, header in zip(request.image, headers.pictures, strict=True):
        width, height = decode.edit_size(header.size, budget, multiple, side)
        size = max(width, LEAST_SIDE), max(height, LEAST_SIDE)
        found.append(_fitted(data, "image", settings, size))
    return tuple(found)


def _fitted(data: bytes, param: str, settings: Settings, size: Size) -> RawImage:
    picture = decode.decode(data, max_pixels=settings.max_input_pixels, param=param, enough=size)
    return decode.to_raw(decode.fit(picture, *size))


def control_image(request: ImageRequest, entry: Entry, settings: Settings, canvas: Canvas) -> RawImage | None:
    """The picture to follow: for a ControlNet, or for a model that draws along any image it is sent."""
    if request.control is not None:
        sent, param = request.control, "control"
    elif entry.edit_mode == "control" and request.image:
        sent, param = request.image[0], "image"
    else:
        return None
    return decode.pad(_fitted(sent, param, settings, canvas.drawn), *canvas.aligned)


def whole_pictures(request: ImageRequest, settings: Settings) -> tuple[RawImage, ...]:
    """What an upscale enlarges, at its full size."""
    most = settings.max_input_pixels
    return tuple(decode.to_raw(decode.decode(data, max_pixels=most, param="image")) for data in request.image)
