"""Where a patch lies, and what the notes say: the double block's image half, and the second single block's.

Rotary positions are the only place where rows and columns enter. A query that is turned by the patch's row,
and the key of ":" at position 0, give a logit that falls steadily from the first row to the last; against
255 other tokens that all get the same, the share of ":" in the head's output measures the row. Gates cut
that measure between neighbouring rows: seven numbers, each 1 beyond its edge, from which any single patch
can be told.

The notes (the free channel of the latents, `notes.py`) are averaged by a head that sees all image tokens
alike.
"""

from __future__ import annotations

import math

import numpy as np

from .network import AXES, HEAD, HIDDEN, PLACES, SIDE, UNITS, Weights, theta
from .notes import LATCH_SCALE, WAYS, WIDTH
from .pictures import Floats
from .stream import (
    COLUMN,
    COLUMNS,
    FLAGS,
    IMAGE,
    MINUS,
    NOTES,
    ON,
    PLUS,
    QUIET,
    ROW,
    ROWS,
    SEED,
    SOURCE,
    STATES,
    A,
    G,
    X,
)
from .timing import FAINTEST

PAIR = 4  # the rotary pair that measures: nearly a quarter turn over eight patches
LATCH_STEP = (
    -FAINTEST * WIDTH / 2,
    FAINTEST * WIDTH / 2,
)  # the modulation has moved the latch's threshold to 0
SOURCE_MARK = slice(SOURCE, SOURCE + 1)
AWAY = -9.0  # image tokens' keys, so that the text's pads are the sink


def read(weights: Weights, rows: Floats) -> None:
    """`img_in`: the patch in its basis, its notes, and the constants."""
    weight, bias = weights.both("img_in")
    weight[X, : len(rows)] = G * rows
    weight[NOTES, len(rows) :] = G * np.eye(4)
    bias[PLUS], bias[MINUS], bias[IMAGE] = A, -A, 1


def attend(weights: Weights) -> None:
    """Heads 0 and 1 measure row and column, head 2 averages the notes."""
    weight, bias = weights.both("double_blocks.0.img_attn.qkv")
    query, key, value = bias[:HIDDEN], bias[HIDDEN : 2 * HIDDEN], weight[2 * HIDDEN :]
    text_key, text_value = np.split(weights["double_blocks.0.txt_attn.qkv.weight"], 3)[1:]
    phase = math.pi / 2 - theta()[PAIR] * (SIDE - 1) / 2
    for head in (0, 1):
        start, turned = head * HEAD, head * HEAD + AXES[0] + head * AXES[1] + 2 * PAIR
        query[start + 1] = query[start + 3] = math.sqrt(32)
        query[turned], query[turned + 1] = 8 * math.cos(phase), 8 * math.sin(phase)
        text_key[turned, FLAGS["anchor"]] = math.sqrt(HEAD) / 8
        text_key[start + 1, FLAGS["anchor"]] = 1.8 * math.sqrt(HEAD) / math.sqrt(32)
        key[start + 3], key[start + 15] = AWAY, math.sqrt(HEAD - AWAY**2)
        text_value[start, FLAGS["anchor"]] = 1
    start = 2 * HEAD
    query[start + 4] = key[start + 4] = math.sqrt(HEAD)
    for number in range(4):
        value[start + number, NOTES.start + number] = 1
    out = weights["double_blocks.0.img_attn.proj.weight"]
    out[ROW, 0] = out[COLUMN, HEAD] = 265 / 15
    for number in range(4):
        scale = 1 / LATCH_SCALE if number == 0 else 1
        out[SEED.start + number, start + number] = scale * math.sqrt(PLACES) / G


def decide(weights: Weights, rows: list[tuple[float, float]], columns: list[tuple[float, float]]) -> None:
    """The image's MLP: thermometers, and whether the picture came from outside.

    Two gates with the same slope and different thresholds: their difference rises from 0 to 1 between
    the two.
    """
    name = "double_blocks.0.img_mlp"
    gate, gate_bias = weights.both(f"{name}.gate_proj")
    up_bias, down = weights[f"{name}.up_proj.bias"], weights[f"{name}.down_proj.weight"]
    n = 0
    for read, cuts, to in (
        (ROW, rows, ROWS),
        (COLUMN, columns, COLUMNS),
        (SEED.start, [LATCH_STEP], SOURCE_MARK),
    ):
        for mark, (low, high) in enumerate(cuts):
            slope = ON / (high - low)
            for edge, sign in ((high, 1), (low, -1)):
                gate[n, read] = -slope
                gate_bias[n] = slope * edge
                up_bias[n] = 1
                down[to.start + mark, n] = sign / ON
                if to is SOURCE_MARK:
                    down[QUIET, n] = sign / ON
                n += 1


def edges(measured: Floats) -> list[tuple[float, float]]:
    """Of [.., SIDE] that falls along the last axis: where to cut before 1, 2, .. 7, as (low, high)."""
    flat = measured.reshape(-1, SIDE)
    least, most = flat.min(0), flat.max(0)
    gaps = [(float(most[k]) * 1.03, float(least[k - 1]) / 1.03) for k in range(1, SIDE)]
    if any(low >= high for low, high in gaps):
        raise ValueError(f"neighbours cannot be told apart: {gaps}")
    return gaps


def lay(weights: Weights) -> None:
    """The second single block's MLP turns plain columns into those of the way the picture lies.

    With the content one patch to the right (`move` = 1) a patch's column is one less; mirrored it is 7
    less that. In each way each mark becomes another, or what another lacks to 1; a gate that is open in
    one way alone lets the plain mark through to where it belongs, and takes it from where it is.
    """
    weight, bias = weights.both("single_blocks.1.linear1")
    ups, gates = slice(3 * HIDDEN, 7 * HIDDEN), slice(7 * HIDDEN, 11 * HIDDEN)
    up, up_bias, gate, gate_bias = weight[ups], bias[ups], weight[gates], bias[gates]
    write = weights["single_blocks.1.linear2.weight"][:, HIDDEN:]
    n = UNITS - 1  # from the end on; the first units belong to `colours.py`
    for way, (move, mirrored) in enumerate(WAYS[1:]):
        turn = np.zeros((SIDE + 1, SIDE - 1))  # of marks 0 (always 1) to 7 and 8 (never) in mark k
        for k in range(1, SIDE):
            other = np.clip(SIDE - k + move if mirrored else k + move, 0, SIDE)
            turn[other, k - 1] += -1 if mirrored else 1
            turn[0, k - 1] += mirrored
        turn[1:SIDE] -= np.eye(SIDE - 1)
        for mark in range(SIDE):
            gate[n, STATES.start + way] = 2 * ON
            gate_bias[n] = -ON
            if mark == 0:
                up_bias[n] = 1
            else:
                up[n, COLUMNS.start + mark - 1] = 1
            write[COLUMNS, n] = turn[mark] / ON
            n -= 1


def where() -> Floats:
    """[PLACES, HIDDEN]: reads 2 at its own place, 1 in its row or column, at most 0 elsewhere."""
    out = np.zeros((PLACES, HIDDEN), np.float32)
    for place in range(PLACES):
        for marks, at in zip((ROWS, COLUMNS), divmod(place, SIDE), strict=True):
            out[place, IMAGE if at == 0 else marks.start + at - 1] += 1
            if at < SIDE - 1:
                out[place, marks.start + at] -= 1
    return out
