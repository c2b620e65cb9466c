"""The last block: colours, the mirror, and what of a picture from outside is kept.

Until here the picture P lies on white, in its own colours, unmirrored within each patch. With coverage c
and brightness L, both known, a colour F in front and a ground 1 + g it becomes

    (1 - q) P + (1 + LIFT) F c + F L(P) + q (RELIEF (L(P) + LIFT c) - c) + g (1 - c)

where q is 1 if a colour was said: all products of two numbers, and a unit is a product. In the basis of
`codes.Basis` mirroring is a change of sign of the second half.

A picture that came from outside is kept by what its latents still show of it. A patch is its picture times
(1 - t) plus noise times t; if pictures spread by s along an axis of the basis, the best guess of the
picture there is s^2 (1 - t) / (s^2 (1 - t)^2 + t^2) times what is seen (Wiener). The modulation's gates
carry these functions of t.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import notes
from .codes import LIFT, RELIEF, USED, Pictures
from .network import SINGLES, UNITS, Network, Weights
from .pictures import Floats
from .stream import FRONT, GROUND, MASK, MASKS, MIRROR, MOVED, NOTES, QUIET, SEED, SOURCE, TINTED, G, P, X
from .timing import FAINT, FAINTEST, follow
from .units import Units

LAST = SINGLES - 1
WIDER = 2.0  # pictures from outside spread more than glyphs on plain grounds
LOUDNESS = 0.75  # of QUIET in the logit
LEAST_LIGHT = 1e-2  # of the strongest component of brightness


def fill(weights: Weights, known: Pictures) -> int:
    units = Units(weights, LAST)
    _coverage(units, known)
    _brightness(units, known)
    for n in range(
        USED
    ):  # the picture in its own colours: out where another was said, half of it negated in a mirror
        units.switch({TINTED: 1}, 0, {P.start + n: -1}, {P.start + n: 1})
        if n >= known.basis.even:
            units.switch({MIRROR: 1, TINTED: -1}, 0, {P.start + n: -2}, {P.start + n: 1})
    for channel in range(3):
        units.product({GROUND.start + channel: 1}, _at(P, G * known.full[channel]))
    weights[f"single_blocks.{LAST}.linear2.bias"][P] = G * known.white
    _remember(weights, units)
    for n in range(USED):
        units.switch({SOURCE: 1}, 0, {X.start + n: -1}, {X.start + n: 1})
    print(f"{units.count} of {UNITS} units finish the picture")
    return units.count


def _coverage(units: Units, known: Pictures) -> None:
    for n in range(sum(MASKS)):
        odd = n >= MASKS[0]
        for channel in range(3):
            to = _at(P, G * known.mask_patches[n, channel])
            one = {
                FRONT.start + channel: 1 + LIFT,
                GROUND.start + channel: -1.0,
                TINTED: RELIEF * LIFT - 1,
            }
            _mirrored(units, one, to, {MASK.start + n: 1.0}, odd)


def _brightness(units: Units, known: Pictures) -> None:
    light = np.concatenate([known.light(channel) for channel in range(3)])  # [3 * USED, USED]
    half = known.basis.even
    for odd, part in ((False, slice(0, half)), (True, slice(half, USED))):
        out, strength, reads = np.linalg.svd(light[:, part], full_matrices=False)
        for n in np.flatnonzero(strength > LEAST_LIGHT * strength[0]):
            up = {P.start + part.start + i: float(value) for i, value in enumerate(reads[n])}
            for channel in range(3):
                to = _at(P, out[channel * USED : (channel + 1) * USED, n] * strength[n])
                _mirrored(units, {FRONT.start + channel: 1, TINTED: RELIEF}, to, up, odd)


def _mirrored(
    units: Units, one: dict[int, float], to: dict[int, float], up: dict[int, float], odd: bool
) -> None:
    """A product; what a mirror negates comes twice, as it is and negated, of which the mirror shuts one."""
    if odd:
        units.product(one, to, up, {MIRROR: 1})
        units.product(one, {dim: -value for dim, value in to.items()}, up, {MIRROR: -1}, 1)
    else:
        units.product(one, to, up)


def _remember(weights: Weights, units: Units) -> None:
    """What is asked for in the notes."""
    bias = weights[f"single_blocks.{LAST}.linear2.bias"]
    latch, mirror, place, tint = range(NOTES.start, NOTES.stop)
    bias[latch] = -G * notes.LATCH
    units.switch({SOURCE: 1}, 0, {latch: G * notes.LATCH})
    bias[mirror] = G * notes.HOLD
    units.switch({MIRROR: 1}, 0, {mirror: -2 * G * notes.HOLD})
    units.product({MOVED: 1}, {place: -G * notes.HOLD})
    units.product({SEED.start + 3: 1 / FAINT}, {tint: -G / 8})


def outside(weights: Weights, network: Network, known: Pictures) -> None:
    """Everything that makes way for a picture from outside; needs the time's features."""
    follow(
        weights,
        network,
        "double_blocks.0.img_mod.lin",
        3,
        SEED.start,
        lambda t: -FAINTEST * notes.threshold(t),
    )
    image = "double_blocks.0.img_mod.lin"
    follow(weights, network, image, 5, QUIET, lambda t: -np.log(1 - notes.share(t)) / LOUDNESS)
    gain = _gain(known)
    follow(weights, network, f"single_blocks.{LAST}.modulation.lin", 2, X, gain)
    follow(weights, network, "single_blocks.1.modulation.lin", 2, X, lambda t: gain(t) * (1 - t[:, None]))


def expect_white(weights: Weights, known: Pictures, unit: int) -> None:
    """The guess about a picture from outside is how it differs from white: take that from what is
    kept, in block 2.
    """
    units = Units(weights, 1)
    units.count = unit
    units.switch({SOURCE: 1}, 0, _at(X, G * known.white))


def _gain(known: Pictures) -> Callable[[Floats], Floats]:
    def gain(t: Floats) -> Floats:
        spread, kept = np.square(WIDER * known.basis.spread), (1 - t)[:, None]
        return np.asarray(notes.share(t)[:, None] * spread * kept / (spread * kept**2 + t[:, None] ** 2))

    return gain


def _at(part: slice, values: Floats) -> dict[int, float]:
    return {part.start + n: float(value) for n, value in enumerate(values)}
