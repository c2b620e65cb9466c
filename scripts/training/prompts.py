"""Prompts that the model is measured by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from .pictures import COLOURS, SHAPES

HELD_OUT = 0.15  # of all combinations, the same ones as when the model was trained; now none is shown

# 50 words of the figures of the model card.
EVERYDAY = (
    "cat", "dog", "apple", "rocket", "pizza", "car", "house", "sun", "heart", "tree", "flower", "fish",
    "bird", "horse", "cow", "pig", "mouse", "rabbit", "bear", "lion", "frog", "monkey", "elephant", "penguin",
    "butterfly", "banana", "strawberry", "lemon", "carrot", "bread", "cheese", "egg", "hamburger", "cake",
    "ice cream", "coffee", "bicycle", "bus", "train", "airplane", "ship", "moon", "cloud", "rainbow", "fire",
    "umbrella", "guitar", "key", "ball", "robot",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShapePrompt:
    colour: str
    shape: str
    background: str

    @property
    def text(self) -> str:
        return f"a {self.colour} {self.shape} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(f"{self.colour}/{self.shape}/{self.background}".encode()).digest()
        return digest[0] < HELD_OUT * 256


def some_shapes(count: int, held_out: int) -> list[ShapePrompt]:
    """Prompts of two different colours and a shape, those held out first; always the same."""
    rng = np.random.default_rng(0)
    every = [ShapePrompt(c, s, b) for s in SHAPES for c in COLOURS for b in COLOURS if c != b]
    held, seen = ([one for one in every if one.held_out is which] for which in (True, False))
    chosen = [held[i] for i in rng.choice(len(held), held_out, replace=False)]
    return chosen + [seen[i] for i in rng.choice(len(seen), count - held_out, replace=False)]
