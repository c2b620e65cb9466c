"""How near two pictures are to each other."""

from __future__ import annotations

from typing import Final

import numpy as np

SAME: Final = 100.0
"""The PSNR, in dB, that stands for pictures that are equal to the byte."""


def psnr(one: bytes, other: bytes) -> float:
    """Peak signal-to-noise ratio of two pictures of one size in dB, `SAME` for equal ones."""
    if len(one) != len(other):
        return 0.0
    difference = np.frombuffer(one, np.uint8).astype(np.float64) - np.frombuffer(other, np.uint8)
    error = float(np.mean(difference**2))
    return SAME if error == 0 else min(SAME, float(10 * np.log10(255**2 / error)))
