"""How near two pictures are to each other, and whether one shows anything."""

from __future__ import annotations

from typing import Final

import numpy as np

SAME: Final = 100.0
"""The PSNR, in dB, that stands for pictures that are equal to the byte."""
FLAT: Final = 1.0
"""Standard deviation of 8-bit values below which a picture shows nothing, e.g. one of NaN."""


def psnr(one: bytes, other: bytes) -> float:
    """Peak signal-to-noise ratio of two pictures of one size in dB, `SAME` for equal ones."""
    if len(one) != len(other):
        return 0.0
    difference = np.frombuffer(one, np.uint8).astype(np.float64) - np.frombuffer(other, np.uint8)
    error = float(np.mean(difference**2))
    return SAME if error == 0 else min(SAME, float(10 * np.log10(255**2 / error)))


def is_flat(rgb: bytes) -> bool:
    """One colour all over: nothing was drawn."""
    pixels = np.frombuffer(rgb, np.uint8).reshape(-1, 3)
    return float(pixels.std(axis=0).max()) < FLAT
