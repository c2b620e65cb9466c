"""The training pictures: Noto Color Emoji glyphs with their names, and drawn shapes.

Every picture is a sprite of 128x128 pixels (premultiplied colour and coverage) that is put on a background.
"""

from __future__ import annotations

import json
import math
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Floats = npt.NDArray[np.float32]

SIZE = 128
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # Debian: fonts-noto-color-emoji
NAMES = "emojibase-data@17.0.0"  # npm, MIT
GLYPH_SIZE = 109  # the one size of Noto's bitmaps
MARGIN = 118  # a glyph's longest side, at most

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

# Subgroups of emojibase's `meta/groups.json` that are taken whole.
SUBGROUPS = {7, 8, 11, 13, 14, *range(34, 49), 50, 51, 53, 54, 55, 56, 59, *range(60, 65)}
SUBGROUPS |= {65, 67, 68, 69, 70, 71, 75, 77, 78, 79, 81}
EXTRA = {
    "grinning face", "face with tears of joy", "winking face", "smiling face with halo",
    "smiling face with heart-eyes", "thinking face", "neutral face", "sleeping face",
    "face with medical mask", "hot face", "cold face", "exploding head", "crying face",
    "face screaming in fear", "angry face", "enraged face", "skull", "smiling face with horns",
    "grinning cat", "crying cat", "alarm clock", "watch", "globe showing Europe-Africa", "compass",
    "collision", "luggage", "hundred points", "books", "open book", "newspaper", "money bag", "coin",
    "envelope", "package", "scissors", "paperclip", "pushpin", "pill", "syringe", "bell", "megaphone",
    "trumpet", "calendar", "briefcase", "hourglass done",
}  # fmt: skip

# What people call a picture whose Unicode name is another one. The first words are the everyday names.
EVERYDAY: dict[str, str] = {
    "cat": "cat face", "dog": "dog face", "apple": "red apple", "rocket": "rocket", "pizza": "pizza",
    "car": "automobile", "house": "house", "sun": "sun", "heart": "red heart", "tree": "deciduous tree",
    "flower": "blossom", "fish": "fish", "bird": "bird", "horse": "horse", "cow": "cow face",
    "pig": "pig face", "mouse": "mouse face", "rabbit": "rabbit face", "bear": "bear", "lion": "lion",
    "frog": "frog", "monkey": "monkey", "elephant": "elephant", "penguin": "penguin",
    "butterfly": "butterfly", "banana": "banana", "strawberry": "strawberry", "lemon": "lemon",
    "carrot": "carrot", "bread": "bread", "cheese": "cheese wedge", "egg": "egg", "hamburger": "hamburger",
    "cake": "birthday cake", "ice cream": "ice cream", "coffee": "hot beverage", "bicycle": "bicycle",
    "bus": "bus", "train": "locomotive", "airplane": "airplane", "ship": "ship", "moon": "crescent moon",
    "cloud": "cloud", "rainbow": "rainbow", "fire": "fire", "umbrella": "umbrella", "guitar": "guitar",
    "key": "key", "ball": "soccer ball", "robot": "robot",
}  # fmt: skip
ALSO: dict[str, str] = {
    "tiger": "tiger face", "smiling face": "grinning face", "smiley": "grinning face", "boat": "sailboat",
    "phone": "mobile phone", "computer": "laptop", "clock": "alarm clock", "donut": "doughnut",
    "beer": "beer mug", "corn": "ear of corn", "snowman": "snowman without snow",
    "christmas tree": "Christmas tree", "dice": "game die", "bee": "honeybee", "ladybug": "lady beetle",
    "dinosaur": "T-Rex", "book": "open book", "gift": "wrapped gift", "wine": "wine glass",
    "ufo": "flying saucer", "planet": "ringed planet", "mountain": "snow-capped mountain",
    "truck": "delivery truck", "lightning": "high voltage", "diamond ring": "ring", "sword": "dagger",
    "pumpkin": "jack-o-lantern", "football": "american football", "hat": "top hat", "shoe": "running shoe",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Concept:
    """One emoji: its Unicode name first, then what else people call it."""

    character: str
    names: tuple[str, ...]
    everyday: bool


@cache
def concepts(folder: Path) -> tuple[Concept, ...]:
    """Emoji of one code point in the chosen subgroups, by code point; names fetched from npm at first use."""
    called: dict[str, list[str]] = {}
    for words, name in (EVERYDAY | ALSO).items():
        called.setdefault(name, []).append(words)
    found = []
    for entry in _emojibase(folder):
        points = [point for point in entry["hexcode"].split("-") if point != "FE0F"]
        name = entry["label"]
        if len(points) != 1 or not (entry.get("subgroup") in SUBGROUPS or name in EXTRA):
            continue
        names = (name.lower(), *(words for words in called.get(name, []) if words != name.lower()))
        found.append(Concept(chr(int(points[0], 16)), names, name in EVERYDAY.values()))
    return tuple(sorted(found, key=lambda concept: concept.character))


def _emojibase(folder: Path) -> list[dict[str, str]]:
    archive = folder / f"{NAMES.replace('@', '-')}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", NAMES], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/en/data.json")
        assert member is not None
        data: list[dict[str, str]] = json.load(member)
    return data


def glyph(character: str) -> Floats:
    """An emoji in the middle of a [128, 128, 4] sprite: colour times coverage, and coverage, in [0, 1]."""
    font = ImageFont.truetype(str(FONT), GLYPH_SIZE)
    page = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(page).text((10, 10), character, font=font, embedded_color=True)
    box = page.getbbox()
    if box is None:
        raise ValueError(f"the font has no picture of U+{ord(character):04X}")
    picture = page.crop(box)
    picture.thumbnail((MARGIN, MARGIN), Image.Resampling.LANCZOS)
    sprite = Image.new("RGBA", (SIZE, SIZE))
    sprite.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    values = np.asarray(np.asarray(sprite, np.float32) / 255, np.float32)
    values[..., :3] *= values[..., 3:]
    return values


def shape_mask(shape: str, x: float = 64, y: float = 64, radius: float = 42) -> Floats:
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
