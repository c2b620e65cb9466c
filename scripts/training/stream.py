"""What lies where in the 384 numbers of a token, and the constants that all blocks agree on.

Image and text tokens go through the same single blocks, so their streams share PLUS, MINUS, FETCH and
everything from GROUND on. Below P's end a text token keeps its identity first, and later what the image
fetches in the second and the fourth single block.
"""

from __future__ import annotations

import numpy as np

from .network import HIDDEN, Weights
from .pictures import Floats

# Image tokens
X = slice(0, 60)  # the noisy patch, in the basis of `codes.Basis`
NOTES = slice(60, 64)  # its free channel
P = slice(64, 124)  # the picture that the blocks write
ROWS, COLUMNS = slice(124, 131), slice(131, 138)  # thermometers: 1 for each edge that the patch lies beyond
ROW, COLUMN = 138, 139  # as the attention measures them
PLUS, MINUS = 140, 141  # the constants that make the layer norms nearly linear
IMAGE, FETCH = 142, 143  # 1 on image tokens; 1 on text tokens to be fetched
SEED = slice(144, 148)  # means of the notes over the picture
SOURCE, MIRROR, MOVED = 148, 149, 150  # what the notes say
QUIET = 151  # how much less of the text is fetched, as a logit, where SOURCE is 1
# Both
GROUND, FRONT, DEFAULT = slice(152, 155), slice(155, 158), slice(158, 161)  # colours, GROUND less white
GROUND_SAID, COLOURED, SHAPE, DARK = 161, 162, 163, 164
TINTED = 165  # COLOURED or SHAPE
STATES = slice(166, 171)  # one of each way to mirror and move, but for the plain one
BALANCE = 171  # minus the sum of all others
CODE = slice(172, HIDDEN)
SIZE = HIDDEN - CODE.start
SWAPPED = 83  # of the code: one set for the first decoding block, another for the others
KEPT = SIZE - SWAPPED
SWAP = slice(CODE.start + KEPT, HIDDEN)
MASKS = (21, 20)  # components of coverage, even and odd
MASK = slice(HIDDEN - sum(MASKS), HIDDEN)  # in the place of swapped code, for the last block

# Text tokens
IDS = 48
IDENTITY = slice(0, IDS)
NEXT_CODE = slice(0, SWAPPED)  # what to add to the swapped code
CLEARED = slice(SWAPPED, SWAPPED + sum(MASKS))  # what lies where the masks will
FLAGS = {"anchor": 124, "ground": 125, "on": 126}
STATE_FLAGS = TINTED  # and from there on one of each way, where image tokens have nothing yet
SEEN = 144  # a word about the ground stands beside

A = 240.0  # PLUS and -MINUS
G = 0.25  # of patches and pictures in the stream
KAPPA = 0.3  # root mean square of a code's numbers
MASK_SCALE = 0.3
TEXT_SCALE = 0.5  # of everything fetched, in the text's stream
ON = 12.0  # what an open gate lets through: silu(12) is 12, silu(-12) is 0
FAR = 40.0  # shuts any gate


WRITERS = ("img_in", "txt_in", "attn.proj", "mlp.down_proj", "linear2")


def balance(weights: Weights, start: str) -> None:
    """Let every layer that writes into the stream write minus the sum of all into one number more.

    A layer norm takes the mean away; so it is 0, and there is nothing to take. Nothing reads that number.
    """
    for name in [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]:
        if name.startswith(start) and name.endswith(WRITERS):
            for part in weights.both(name):
                part[BALANCE] = 0
                part[BALANCE] = -part.sum(0)


def zero_sum(size: int) -> Floats:
    """[size, size - 1]: orthonormal columns that sum to 0, as the layer norms take the mean away."""
    start = np.random.default_rng(0).normal(size=(size, size - 1))
    return np.asarray(np.linalg.qr(np.concatenate((np.ones((size, 1)), start), 1))[0][:, 1:])
