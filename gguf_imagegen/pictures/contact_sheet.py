"""A contact sheet: pictures side by side, each with a label. Pure, CPU-bound: call it in a thread."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from gguf_imagegen.pictures import encode

WIDTH = 256
"""Pixels of a cell's side, where there are few."""
MOST_PIXELS = 1 << 24
MOST_COLUMNS = 10
TEXT = 12
"""Height of the letters in pixels."""
GAP = 8
PAPER, INK, EMPTY = "#ffffff", "#222222", "#e6e6e6"


@dataclass(frozen=True)
class Cell:
    """An encoded picture, None where there is none yet, and the lines below it."""

    picture: bytes | None
    lines: tuple[str, ...]


def make(cells: Sequence[Cell], columns: int, xmp: bytes = b"") -> bytes:
    """A PNG file of at most about MOST_PIXELS; so many `columns` if they are few, else nearly square."""
    if not 1 < columns <= MOST_COLUMNS:
        columns = min(len(cells), math.ceil(math.sqrt(len(cells))))
    rows = math.ceil(len(cells) / columns)
    side = min(WIDTH, math.isqrt(MOST_PIXELS // (rows * columns)))
    below = max(len(cell.lines) for cell in cells) * (TEXT + 4)
    across, down = side + GAP, side + below + GAP
    sheet = Image.new("RGB", (columns * across + GAP, rows * down + GAP), PAPER)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        _draw(sheet, cell, (GAP + column * across, GAP + row * down), side)
    return encode.encode_picture(sheet, format="png", xmp=xmp)


def _draw(sheet: Image.Image, cell: Cell, place: tuple[int, int], side: int) -> None:
    left, top = place
    draw = ImageDraw.Draw(sheet)
    if cell.picture is None:
        draw.rectangle((left, top, left + side - 1, top + side - 1), fill=EMPTY)
    else:
        with Image.open(io.BytesIO(cell.picture)) as picture:
            small = picture.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
    font = ImageFont.load_default(TEXT)
    for number, line in enumerate(cell.lines):
        text = _fitting(" ".join(line.split()), font, side)
        draw.text((left, top + side + 2 + number * (TEXT + 4)), text, INK, font)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The beginning of the text, as much as has room."""
    text = text[:width]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
