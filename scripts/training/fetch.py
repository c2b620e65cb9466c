"""The single blocks' attention: image tokens fetch what text tokens hold, and learn how their picture is to
lie.

Heads 0 and 1 fetch. A word to be fetched has the logit ln 4, everything else 0 and image tokens nearly
nothing, so that each such word has a share of 4 in about 265, whatever else is said; what is fetched of
several words adds up. Head 2 chooses one of six words of the template that every prompt contains: the way
the picture lies. Its logits grow with the notes' means and have no upper limit to speak of, which makes a
softmax the one clean switch in this architecture.
"""

from __future__ import annotations

import math

import numpy as np

from .network import HEAD, HIDDEN, Weights
from .notes import MOVES, WAYS
from .pictures import Floats
from .stream import (
    CLEARED,
    CODE,
    DARK,
    FETCH,
    GROUND,
    IMAGE,
    MASK,
    MIRROR,
    MOVED,
    NEXT_CODE,
    QUIET,
    SEED,
    STATE_FLAGS,
    STATES,
    SWAP,
    TEXT_SCALE,
)  # fmt: skip

SHARE = 4 / 265
BOOST = 8.0  # of values on their way, against rounding
SWITCH = 10.0  # norm scales of the queries and the keys that choose a way
LESS = 3.0  # likewise of the one that fetches less of the text


def fetch(weights: Weights, block: int) -> None:
    """Queries and keys of heads 0 and 1."""
    name = f"single_blocks.{block}"
    weight, bias = weights.both(f"{name}.linear1")
    for head in range(3):
        at = head * HEAD
        key = weight[HIDDEN + at : HIDDEN + at + HEAD]
        key[3, IMAGE] = -7
        bias[HIDDEN + at + 15] = math.sqrt(HEAD)
        bias[at + 3] = 8
        if head < 2:
            bias[at] = 8
            key[0, FETCH] = math.log(4) * math.sqrt(2)
            weight[at + 7, QUIET] = 1
            key[7, FETCH] = -1
    for what in ("query", "key"):
        weights[f"{name}.norm.{what}_norm.scale"][7] = LESS
    weights[f"{name}.norm.query_norm.scale"][3] = 3


def values(weights: Weights, block: int, pairs: list[tuple[int, int]], sign: int = 1) -> None:
    """What heads 0 and 1 carry: from which number of a text token to which of an image token."""
    weight = weights[f"single_blocks.{block}.linear1.weight"][2 * HIDDEN : 3 * HIDDEN]
    write = weights[f"single_blocks.{block}.linear2.weight"]
    if len(pairs) > 2 * HEAD:
        raise ValueError(f"{len(pairs)} numbers do not fit two heads")
    for place, (source, to) in enumerate(pairs):
        weight[place, source] = BOOST / TEXT_SCALE
        write[to, place] = sign / (BOOST * SHARE)


def first(weights: Weights, flags: Floats) -> None:
    """The code for the first decoding block, colours and flags; and the way, whose `flags` are read
    as they are.
    """
    fetch(weights, 0)
    values(weights, 0, [(n, n) for n in (*range(GROUND.start, DARK + 1), *range(CODE.start, CODE.stop))])
    _choose(weights, flags)


def swap(weights: Weights, block: int) -> None:
    """Part of the code is exchanged, for the blocks after this one."""
    fetch(weights, block)
    values(weights, block, list(zip(range(*_ends(NEXT_CODE)), range(*_ends(SWAP)), strict=True)))


def clear(weights: Weights, block: int) -> None:
    """Some of the code makes room for the masks that this block's MLP writes there."""
    fetch(weights, block)
    values(weights, block, list(zip(range(*_ends(CLEARED)), range(*_ends(MASK)), strict=True)), -1)


def _ends(part: slice) -> tuple[int, int]:
    return part.start, part.stop


def _choose(weights: Weights, flags: Floats) -> None:
    """Head 2: a query of the notes' means, keys of the ways, and values that name the way."""
    weight, bias = weights.both("single_blocks.0.linear1")
    at = 2 * HEAD
    query, key, value = (weight[part * HIDDEN + at : part * HIDDEN + at + HEAD] for part in range(3))
    bias[at + 3] = 0.1  # the other query numbers are of this size here
    for number, note in ((4, 1), (5, 2)):
        query[number, SEED.start + note] = 1
    bias[at + 6] = 0.6
    for way, (move, mirrored) in enumerate(WAYS):
        flag = STATE_FLAGS + way
        likes = (2 if mirrored else -2, 2 * move, 3 - 2 * MOVES / 0.6 * abs(move))
        key[4:7, flag] = np.array(likes) / flags[way]
        key[8, flag] = math.sqrt(14 - sum(one**2 for one in likes)) / flags[way]  # keys of one length
        value[0, flag], value[1, flag] = mirrored / flags[way], move / flags[way]
        if way:
            value[1 + way, flag] = 1 / flags[way]
    for what in ("query", "key"):
        weights[f"single_blocks.0.norm.{what}_norm.scale"][4:7] = SWITCH
    write = weights["single_blocks.0.linear2.weight"]
    for place, to in enumerate((MIRROR, MOVED, *range(*_ends(STATES)))):
        write[to, at + place] = 1
