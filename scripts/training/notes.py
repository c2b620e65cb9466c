"""Notes: what a transformer without a memory writes into the picture's free channel, to read it at the next
step.

A model like this one sees a noisy picture and a time, and knows nothing of the steps before. But its
latents have a channel that no picture uses. What it asks for there comes back: in a rectified flow x_t = (1
- t) x0 + t noise, so at time t the channel's mean is (1 - t) times what was asked for and t times the
noise's mean. Each of the 2x2 latents of a patch is a note of its own:

0  the latch. The model always asks for LATCH here. Read at t < 0.7, it tells a picture that the model has
begun
itself from one that came in from outside (image to image), whose free channel is empty.
1  mirrored or not: the sign of the noise, and once decided the model asks for more of the same.
2  where: the lowest, middle and highest thirds of the noise are to the left, in the middle, to the right;
likewise.
3  the ground's tint; the model asks for what it reads, which keeps it: t n + (1 - t) n = n.
"""

from __future__ import annotations

import numpy as np

from .pictures import Floats

LATCH = 12.0
LATCH_SCALE = 16.0  # by which the latch's mean is made smaller than the others'
LATCHED_AT = 0.7  # from here on the latch is not yet to be read
ENOUGH = 0.2  # of the latch, in case a mask leaves only part of the picture to the model
WIDTH = 0.25  # of the latch's step
MOVES = 0.6  # beyond which noise moves the picture
HOLD = 1.0  # asked for in notes 1 and 2
WAYS = tuple((move, mirrored) for mirrored in (0, 1) for move in (0, -1, 1))
"""How a picture can lie: moved by a patch to the left or right, mirrored; the plain way first."""


def threshold(t: Floats) -> Floats:
    """Of the first note as it is read, below which a picture came from outside."""
    full = 8 * LATCH / LATCH_SCALE * (1 - t)
    return np.where(t < LATCHED_AT, ENOUGH * full, -1)


def share(t: Floats) -> Floats:
    """How much of a picture from outside is kept, against what the text says."""
    return np.clip(0.85 - 3 * (t - 0.6), 0.3, 0.85)
