"""The pictures: Noto Color Emoji glyphs and drawn shapes, as sprites of 128x128 pixels.

A sprite holds colour times coverage, and coverage, so that it lies on any ground as `colour + (1 -
coverage) * ground`.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Floats = npt.NDArray[np.floating[Any]]

SIZE = 128
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # Debian: fonts-noto-color-emoji
GLYPH_SIZE = 109  # the one size of Noto's bitmaps
REACH = 96  # a glyph's longest side: six patches of eight, so that it can move by one either way
RADIUS = 42  # of a drawn shape

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 40),
    "orange": (255, 140, 20),
    "yellow": (255, 220, 40),
    "green": (40, 160, 60),
    "cyan": (60, 205, 225),
    "blue": (35, 80, 215),
    "purple": (130, 50, 170),
    "pink": (255, 150, 190),
    "brown": (130, 80, 40),
    "gray": (130, 130, 130),
    "black": (15, 15, 15),
    "white": (255, 255, 255),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "diamond")
DEFAULT = {  # colours of shapes that nothing is said about
    "circle": "red", "square": "blue", "triangle": "green", "star": "yellow", "heart": "red",
    "ring": "orange", "diamond": "cyan",
}  # fmt: skip


@cache
def glyph(character: str, reach: int = REACH) -> Floats:
    """An emoji in the middle of a [128, 128, 4] sprite, its longest side `reach` pixels; values in [0, 1]."""
    font = ImageFont.truetype(str(FONT), GLYPH_SIZE)
    page = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(page).text((10, 10), character, font=font, embedded_color=True)
    box = page.getbbox()
    if box is None:
        raise ValueError(f"the font has no picture of U+{ord(character):04X}")
    picture = page.crop(box)
    picture.thumbnail((reach, reach), Image.Resampling.LANCZOS)
    sprite = Image.new("RGBA", (SIZE, SIZE))
    sprite.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    values = np.asarray(np.asarray(sprite, np.float32) / 255, np.float32)
    values[..., :3] *= values[..., 3:]
    return values


def on(sprite: Floats, ground: Floats | float) -> Floats:
    """A sprite on a plain ground (one number, or red, green and blue)."""
    return np.asarray(sprite[..., :3] + (1 - sprite[..., 3:]) * ground, np.float32)


def drawn(shape: str, front: Floats | float) -> Floats:
    """A shape of one colour as a sprite."""
    mask = shape_mask(shape)[..., None]
    return np.concatenate((mask * (front * np.ones(3)), mask), -1).astype(np.float32)


def shape_mask(shape: str, x: float = 64, y: float = 64, radius: float = RADIUS) -> Floats:
    """Coverage [128, 128] in [0, 1] of a drawn shape around (x, y), in pixels; 4x4 samples a pixel."""
    scale = 4
    page = Image.new("L", (SIZE * scale, SIZE * scale))
    draw = ImageDraw.Draw(page)
    cx, cy, r = x * scale, y * scale, radius * scale
    box = (cx - r, cy - r, cx + r, cy + r)

    def polygon(points: list[tuple[float, float]]) -> None:
        draw.polygon([(cx + r * u, cy + r * v) for u, v in points], fill=255)

    match shape:
        case "circle":
            draw.ellipse(box, fill=255)
        case "ring":
            draw.ellipse(box, fill=255)
            draw.ellipse((cx - 0.55 * r, cy - 0.55 * r, cx + 0.55 * r, cy + 0.55 * r), fill=0)
        case "square":
            polygon([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
        case "diamond":
            polygon([(0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)])
        case "triangle":
            polygon([(0, -0.95), (1.05, 0.85), (-1.05, 0.85)])
        case "star":
            turns = [(math.pi * i / 5, 1.1 if i % 2 == 0 else 0.45) for i in range(10)]
            polygon([(length * math.sin(turn), -length * math.cos(turn)) for turn, length in turns])
        case "heart":
            turns_ = [2 * math.pi * i / 80 for i in range(80)]
            polygon([(_heart_x(t) / 16, _heart_y(t) / 16) for t in turns_])
        case _:
            raise ValueError(f"unknown shape {shape!r}: one of {', '.join(SHAPES)}")
    small = page.resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(np.asarray(small, np.float32) / 255, np.float32)


def _heart_x(turn: float) -> float:
    return 16 * math.sin(turn) ** 3


def _heart_y(turn: float) -> float:
    return -(13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn))


def colour(name: str) -> Floats:
    """A named colour as three numbers in [0, 1]."""
    return np.asarray(np.array(COLOURS[name], np.float32) / 255, np.float32)
