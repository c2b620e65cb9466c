"""From an engine's pixels to the bytes of an answer: how, in a value that can be sent to the pixels."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from gguf_imagegen.pictures import encode, insets, masks
from gguf_imagegen.pictures.encode import ImageFormat
from gguf_imagegen.pictures.insets import Inset
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import DEFAULT_TILE

Size = tuple[int, int]


class Upscaler(Struct, frozen=True):
    """An ESRGAN model; `tile` is the side of the squares that it works in, pixels of the smaller picture."""

    path: Path
    tile: int = DEFAULT_TILE


class Finish(Struct, frozen=True):
    """Sizes are width and height: `drawn` is the centre of what the engine makes, `size` what the job wants.

    `original` and `mask` (of that size) give back the pixels that an edit must keep; with `inset` it is that
    part of them that was drawn. The file has the size `delivered`. The `enlarger` is used before pixels are
    given back, where the model drew less than `size`, and the `upscaler` after that.
    """

    drawn: Size
    size: Size
    delivered: Size
    format: ImageFormat
    compression: int | None
    original: RawImage | None
    mask: RawImage | None
    inset: Inset | None
    xmp: bytes
    texts: tuple[str, ...]
    """The `parameters` of each picture, by its index."""
    enlarger: Upscaler | None = None
    upscaler: Upscaler | None = None

    @property
    def enlarges(self) -> bool:
        """Whether an upscaler has work to do."""
        return self.enlarger is not None or self.upscaler is not None

    def crop(self, made: RawImage) -> RawImage:
        """What the engine made, without what its aligned size adds. CPU-bound: call it in a thread."""
        return RawImage(*self.drawn, 3, encode.centre_crop(made.data, made.width, made.height, *self.drawn))

    def restore(self, drawn: RawImage) -> RawImage:
        """Exactly of `size`, kept pixels put back; or the whole picture that it is a part of.

        CPU-bound: call it in a thread.
        """
        if self.inset is not None and self.original is not None and self.mask is not None:
            return insets.put_back(drawn, self.inset, self.original, self.mask)
        picture = encode.resized(drawn, *self.size)
        if self.original is None or self.mask is None:
            return picture
        rgb = masks.composite(picture.data, *self.size, self.original, self.mask)
        return RawImage(*self.size, 3, rgb)

    def resize(self, picture: RawImage) -> RawImage:
        """Of the size `delivered`. CPU-bound: call it in a thread."""
        return encode.resized(picture, *self.delivered)

    def encode(self, picture: RawImage, index: int) -> bytes:
        """The file of picture `index`, with its text in it. CPU-bound: call it in a thread."""
        return encode.encode(
            picture.data,
            picture.width,
            picture.height,
            format=self.format,
            compression=self.compression,
            parameters=self.texts[index],
            xmp=self.xmp,
        )

    def file(self, made: RawImage, index: int) -> bytes:
        """All of it but what an upscaler does. CPU-bound: call it in a thread."""
        return self.encode(self.resize(self.restore(self.crop(made))), index)

    def preview(self, picture: RawImage) -> bytes:
        """A small file in the format that the client asked for. CPU-bound: call it in a thread."""
        return encode.encode_preview(picture.data, picture.width, picture.height, format=self.format)
