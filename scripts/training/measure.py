"""What is in a picture: the colours and the shape of a drawn shape, and which glyph it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from . import vocabulary
from .pictures import COLOURS, SHAPES, Floats, colour, glyph, shape_mask

FRAME = 6  # pixels along the border that are background
APART = 0.25  # distance in RGB from the background at which a pixel belongs to the shape
GRID = 64  # side of the square that shapes are compared in
ALBUM = Path(__file__).with_name("album.png")
SMALL = 16  # pixels of a copy's side
STEP = 2  # pixels by which a picture can have moved in a copy
COLUMNS = 20  # copies beside each other
LEAST = 60  # pixels of a shape, or there is none


@dataclass(frozen=True, slots=True)
class Seen:
    """Names of what a picture shows; `shape` is "nothing" where nothing differs from the background."""

    colour: str
    shape: str
    background: str


def look(picture: Image.Image) -> Seen:
    """Read a picture of one drawn shape on a plain background."""
    pixels = np.asarray(picture.convert("RGB"), np.float32) / 255
    frame = np.ones(pixels.shape[:2], bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    ground = np.median(pixels[frame], 0)
    mask = np.linalg.norm(pixels - ground, axis=-1) > APART
    if mask.sum() < LEAST:
        return Seen("nothing", "nothing", nearest_colour(ground))
    return Seen(nearest_colour(np.median(pixels[mask], 0)), nearest_shape(mask), nearest_colour(ground))


def nearest_colour(value: npt.ArrayLike) -> str:
    return min(COLOURS, key=lambda name: float(np.linalg.norm(np.asarray(value) - colour(name))))


def nearest_shape(mask: npt.NDArray[np.bool_]) -> str:
    """The template that overlaps most (intersection over union) once both fill the same square."""
    normal = _normal(mask)
    return max(SHAPES, key=lambda shape: _overlap(normal, _template(shape)))


@cache
def _template(shape: str) -> npt.NDArray[np.bool_]:
    return _normal(shape_mask(shape) > 0.5)


def _normal(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(cut.shape)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[top : top + cut.shape[0], left : left + cut.shape[1]] = 255 * cut
    return np.asarray(Image.fromarray(square).resize((GRID, GRID), Image.Resampling.BOX)) > 127


def _overlap(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


class Album:
    """Small copies of all glyphs, to tell which one a picture shows wherever it lies, mirrored or
    not, on any ground.
    """

    def __init__(self, file: Path = ALBUM) -> None:
        sheet = np.asarray(Image.open(file), np.float32) / 255
        rows, columns = sheet.shape[0] // SMALL, sheet.shape[1] // SMALL
        small = (
            sheet.reshape(rows, SMALL, columns, SMALL, 4)
            .transpose(0, 2, 1, 3, 4)
            .reshape(-1, SMALL, SMALL, 4)
        )
        self.names = [names for unicode, names in vocabulary.entries() if unicode]
        plain = small[: len(self.names)]
        ways = [np.roll(way, move, 2) for way in (plain, plain[:, :, ::-1]) for move in (-STEP, 0, STEP)]
        self._known = np.concatenate(ways)

    def names_of(self, picture: Image.Image) -> tuple[str, ...]:
        """Names of the glyph whose least squared difference from the picture is the smallest."""
        seen = (
            np.asarray(picture.convert("RGB").resize((SMALL, SMALL), Image.Resampling.BOX), np.float32) / 255
        )
        ground = np.median(np.concatenate((seen[0], seen[-1])), 0)
        shown = self._known[..., :3] + (1 - self._known[..., 3:]) * ground
        return self.names[int(np.square(shown - seen).sum((1, 2, 3)).argmin()) % len(self.names)]


def write_album(characters: Sequence[str], file: Path = ALBUM) -> None:
    """The sheet of small copies, colour times coverage and coverage."""
    rows = -(-len(characters) // COLUMNS)
    sheet = np.zeros((rows * SMALL, COLUMNS * SMALL, 4), np.float32)
    for number, character in enumerate(characters):
        top, left = SMALL * (number // COLUMNS), SMALL * (number % COLUMNS)
        small = glyph(character).reshape(SMALL, 8, SMALL, 8, 4).mean((1, 3))
        sheet[top : top + SMALL, left : left + SMALL] = small
    Image.fromarray((255 * sheet).round().astype(np.uint8), "RGBA").save(file, optimize=True)


def psnr(one: Floats, other: Floats) -> float:
    """Peak signal to noise ratio in dB of values in [0, 1]."""
    return float(-10 * np.log10(np.mean(np.square(np.clip(one, 0, 1) - other))))


def sprites() -> list[Floats]:
    """All glyphs; needs the font, and emojibase's code points from `words.concepts`' archive."""
    from .words import concepts

    folder = Path(__file__).parents[2] / "build" / "embedded"
    return [glyph(concept.character) for concept in concepts(folder)]
