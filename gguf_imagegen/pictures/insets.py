"""A part of a picture that is drawn anew at a larger size and put back: AUTOMATIC1111's "only masked"."""

from __future__ import annotations

from msgspec import Struct
from PIL import Image

from gguf_imagegen.pictures import masks
from gguf_imagegen.pictures.decode import Size, to_raw
from gguf_imagegen.vocabulary.artifacts import RawImage


class Inset(Struct, frozen=True):
    """The rectangle of a picture of the size `whole` that is drawn anew; pixels."""

    left: int
    top: int
    width: int
    height: int
    whole: Size

    @property
    def box(self) -> tuple[int, int, int, int]:
        """As Pillow has it."""
        return self.left, self.top, self.left + self.width, self.top + self.height


def around(mask: RawImage, padding: int, size: Size) -> Inset:
    """The least rectangle around all that is repainted and `padding` pixels more, in the aspect of `size`
    unless the picture is too narrow for that.
    """
    left, top, right, bottom = _picture(mask).getbbox() or (0, 0, mask.width, mask.height)
    left, right = max(0, left - padding), min(mask.width, right + padding)
    top, bottom = max(0, top - padding), min(mask.height, bottom + padding)
    width = max(right - left, -(-(bottom - top) * size[0] // size[1]))
    height = max(bottom - top, -(-(right - left) * size[1] // size[0]))
    left, width = _grown(left, right - left, width, mask.width)
    top, height = _grown(top, bottom - top, height, mask.height)
    return Inset(left, top, width, height, (mask.width, mask.height))


def _grown(start: int, length: int, wanted: int, most: int) -> tuple[int, int]:
    """A stretch of the wanted length, as far as there is room, in the middle of which this one lies."""
    wanted = min(wanted, most)
    return min(max(0, start - (wanted - length) // 2), most - wanted), wanted


def part_of(picture: Image.Image, inset: Inset, size: Size) -> Image.Image:
    """The rectangle, brought to `size`."""
    return picture.crop(inset.box).resize(size, Image.Resampling.LANCZOS)


def part_of_mask(mask: RawImage, inset: Inset, size: Size) -> RawImage:
    """Likewise; what is repainted at all is white."""
    part = _picture(mask).crop(inset.box).resize(size, Image.Resampling.BOX)
    return masks.touched(RawImage(*size, 1, part.tobytes()))


def put_back(drawn: RawImage, inset: Inset, original: RawImage, mask: RawImage) -> RawImage:
    """The original with what was drawn in its rectangle; kept pixels are the original's own."""
    size = inset.width, inset.height
    part = Image.frombytes("RGB", (drawn.width, drawn.height), drawn.data)
    part = part.resize(size, Image.Resampling.LANCZOS)
    whole = Image.frombytes("RGB", inset.whole, original.data)
    kept = to_raw(whole.crop(inset.box))
    wanted = RawImage(*size, 1, _picture(mask).crop(inset.box).tobytes())
    mixed = masks.composite(part.tobytes(), *size, kept, wanted)
    whole.paste(Image.frombytes("RGB", size, mixed), inset.box)
    return to_raw(whole)


def _picture(mask: RawImage) -> Image.Image:
    return Image.frombytes("L", (mask.width, mask.height), mask.data)
