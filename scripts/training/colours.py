"""The second single block's MLP: what colour is what, before the picture is there."""

from __future__ import annotations

from .network import Weights
from .stream import (
    COLOURED,
    DARK,
    DEFAULT,
    FRONT,
    GROUND,
    GROUND_SAID,
    MIRROR,
    MOVED,
    SEED,
    SHAPE,
    SOURCE,
    TINTED,
)  # fmt: skip
from .timing import FAINT
from .units import Units

TINT = (
    0.16,
    0.12,
    0.24,
)  # how much of red, green and blue a standard deviation of noise takes from a white ground
NIGHT = 0.93  # taken from the ground under something white


def settle(weights: Weights) -> int:
    """Fill the first units; how many they are."""
    units = Units(weights, 1)
    units.step({COLOURED: 1, SHAPE: 1}, 0.3, 0.7, {TINTED: 1})
    for channel in range(3):  # shapes have a colour of their own unless one is said
        units.product({DEFAULT.start + channel: 1}, {FRONT.start + channel: 1}, shut={COLOURED: 1})
    quiet = {GROUND_SAID: 1.0, DARK: 1.0, SOURCE: 1.0}
    noise = SEED.start + 3
    red, green, blue = (GROUND.start + channel for channel in range(3))
    units.above({noise: 1 / FAINT}, 0.1, {red: -TINT[0]}, quiet)
    units.above({noise: -1 / FAINT}, 0.1, {blue: -TINT[2]}, quiet)
    units.above({MIRROR: 2, MOVED: 0.6}, 1, {green: -TINT[1]}, quiet)
    units.step({DARK: 1, GROUND_SAID: -1}, 0.3, 0.7, {red: -NIGHT, green: -NIGHT, blue: -NIGHT})
    return units.count
