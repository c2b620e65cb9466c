"""Blocks 3 and 4: from codes to patches.

At each place the 60 numbers of the patch are a linear map of the code, and a map of rank r is r units: each
reads one number off the code and writes one pattern, behind a gate that is open at this place alone.
Reduced-rank regression gives the strongest such pairs; a singular value says how much a unit is worth, so
the units go to the places that need them. Both blocks see the part of the code that stays and one set of
what is exchanged, and share the work: each in turn is fitted to what the other leaves. What the units write
is fitted once more at the end, to what they do say in this network, so that whatever the quantised blocks
before got wrong in the same way for all pictures is made good.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .codes import Codes, Pictures
from .network import HIDDEN, PLACES, UNITS, Network, Weights, rounded, silu
from .pictures import Floats
from .places import where
from .stream import CODE, MASK, MASK_SCALE, G, P
from .timing import widen

GATE, APART = 32.0, 1.25  # `where` is 2 at a unit's own place and at most 1 elsewhere
BLOCKS = (2, 3)  # the third and the fourth
COVERING = 600  # units of the second decoding block for coverage
ROUNDS = 3


@dataclass(frozen=True)
class Pattern:
    """One unit: at a place, `read` [CODE] times `write` [USED or masks]."""

    worth: float
    place: int
    read: Floats
    write: Floats


class Solver:
    """Reduced-rank regression at all places on the same codes, whose decomposition is made once."""

    def __init__(self, codes: Floats) -> None:
        self.codes = codes
        basis, strength, turn = np.linalg.svd(codes, full_matrices=False)
        keep = strength > 1e-4 * strength[0]
        self.basis, self.back = basis[:, keep], turn[keep].T / strength[keep]

    def strongest(self, aim: Floats, count: int) -> list[Pattern]:
        """Of [pictures, PLACES, size], the `count` strongest patterns of all places."""
        found = []
        for place in range(PLACES):
            if not aim[:, place].any():
                continue
            u, worth, write = np.linalg.svd(self.basis.T @ aim[:, place], full_matrices=False)
            reads = self.back @ (u * worth)
            found += [Pattern(float(worth[j]), place, reads[:, j], write[j]) for j in range(len(worth))]
        return sorted(found, key=lambda one: -one.worth)[:count]

    def said(self, found: list[Pattern], like: Floats) -> Floats:
        """What the patterns give for the codes, shaped like an aim."""
        out = np.zeros_like(like)
        for place in range(PLACES):
            here = [one for one in found if one.place == place]
            if here:
                out[:, place] = (
                    self.codes
                    @ np.stack([one.read for one in here], 1)
                    @ np.stack([one.write for one in here])
                )
        return out


def share(known: Pictures, codes: Codes, weight: Floats) -> tuple[list[list[Pattern]], list[Floats]]:
    """The patterns of both blocks, and what the first should say; those for masks come last in the second."""
    w = weight[:, None]
    solvers = [Solver(codes.first * w), Solver(codes.later * w)]
    aim = known.shown * weight[:, None, None]
    room = [UNITS, UNITS - COVERING]
    said: list[Floats] = [np.zeros_like(aim), np.zeros_like(aim)]
    found: list[list[Pattern]] = [[], []]
    for turn in range(ROUNDS):
        for block in (0, 1):
            found[block] = solvers[block].strongest(aim - said[1 - block], room[block])
            said[block] = solvers[block].said(found[block], aim)
        left = np.square(aim - said[0] - said[1]).sum() / np.square(aim).sum()
        print(f"round {turn}: {left:.4f} of the pictures is left")
    masks = known.masks * weight[:, None, None] / MASK_SCALE
    found[1] += solvers[1].strongest(masks, COVERING)
    return found, [one / weight[:, None, None] for one in said]


def fill(
    weights: Weights,
    block: int,
    network: Network,
    stream: Floats,
    patterns: list[Pattern],
    aim: Floats,
    weight: Floats,
) -> Floats:
    """One block's units; `stream` [pictures, PLACES, HIDDEN] is what it sees, `aim` [.., PLACES, P and
    masks].

    Gives what they say, shaped like `aim`.
    """
    widen(weights, block, stream)
    h = network.modulated(stream, np.ones(len(stream), np.float32), block)
    linear1, bias1 = weights.both(f"single_blocks.{block}.linear1")
    up, gate = linear1[3 * HIDDEN : 7 * HIDDEN], linear1[7 * HIDDEN :]
    here, count = where(), len(patterns)
    for n, one in enumerate(patterns):
        gate[n] = GATE * here[one.place]
        bias1[7 * HIDDEN + n] = -APART * GATE
        up[n, CODE] = one.read / (GATE * (2 - APART))
    weights.seal(f"single_blocks.{block}.linear1")
    flat = rounded(h.reshape(-1, HIDDEN))
    act = (flat @ up[:count].T) * silu(flat @ gate[:count].T + bias1[7 * HIDDEN : 7 * HIDDEN + count])
    rows = np.repeat(weight, PLACES)[:, None]
    wide, wanted = (act * rows).astype(np.float64), aim.reshape(len(flat), -1) * rows
    gram = wide.T @ wide
    gram += np.eye(count) * (np.trace(gram) / count * 1e-6)
    out = np.linalg.solve(gram, wide.T @ wanted).T
    said = (act @ out.T).reshape(aim.shape)
    write = weights[f"single_blocks.{block}.linear2.weight"][:, HIDDEN:]
    pixels = P.stop - P.start
    write[P, :count] = G * out[:pixels]
    write[MASK, :count] = out[pixels:]
    return np.asarray(said)
