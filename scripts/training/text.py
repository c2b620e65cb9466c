"""Token vectors, and what the double block's text half makes of them.

A vector is an identity (one of nearly a thousand directions in 48 dimensions, far enough apart that one
gate of the MLP opens for one word alone), flags of what its word does, and a rest that brings all vectors
to one length. In the block, one head of the attention looks whether "background" follows or "on" precedes;
then the MLP looks words up: a gate for each word, in which silu(12) = 12 writes its code and silu(-16) = 0
nothing. Both come out as intended whatever Q4_0 did to the vectors, because they are worked out from the
vectors as quantised.
"""

from __future__ import annotations

import math

import numpy as np

from . import pictures
from .network import AXES, CONTEXT, HEAD, HIDDEN, Network, Texts, Weights, normed, silu, theta, through
from .network import TABLE as KIND
from .notes import WAYS
from .pictures import Floats
from .stream import (
    CLEARED,
    CODE,
    COLOURED,
    DARK,
    DEFAULT,
    FETCH,
    FLAGS,
    FRONT,
    GROUND,
    GROUND_SAID,
    IDENTITY,
    IDS,
    KEPT,
    MASK,
    MINUS,
    NEXT_CODE,
    ON,
    PLUS,
    SEEN,
    SHAPE,
    STATE_FLAGS,
    SWAP,
    SWAPPED,
    TEXT_SCALE,
    A,
)  # fmt: skip
from .tokens import template
from .words import Words, identities

SHARP = 40.0  # a gate's slope along an identity
SURE = 20.0  # and along what stands beside
LENGTH = 7.2  # of identities in the table
AT = {"anchor": 48, "ground": 49, "on": 50, "fetch": 51}  # flags in the table
STATES_AT = 52  # one flag for each way a picture can lie, on words of the template
REST = STATES_AT + len(WAYS)  # from here on all numbers of a vector are one, so that Q4_0's scale fits them
HEAR = math.log(4)  # logit of a token that is fetched


class Table:
    """Vectors [rows, CONTEXT] of all tokens in use; `row` by token."""

    def __init__(self, words: Words) -> None:
        self.words = words
        (anchor,), after = template()
        targets = [anchor, *dict.fromkeys(t for t in after if after.count(t) == 1)][: len(WAYS)]
        special = {words.ground, words.on, *targets}
        used = sorted({*words.named, *words.neutral, *special})
        self.row = {token: row for row, token in enumerate(used)}
        self.identity = identities(words.named)
        vectors = np.zeros((len(used), CONTEXT))
        for token, row in self.row.items():
            vector = vectors[row]
            if token in self.identity:
                vector[:IDS] = LENGTH * self.identity[token]
                vector[AT["fetch"]] = 2
            for flag, tokens in (
                ("anchor", [anchor]),
                ("ground", [words.ground]),
                ("on", [words.on]),
            ):
                if token in tokens:
                    vector[AT[flag]] = 2
            if token in targets:
                vector[STATES_AT + targets.index(token)] = 2
            if vector.any():
                vector[REST:] = math.sqrt(max(0, CONTEXT - (vector**2).sum()) / (CONTEXT - REST))
        self.vectors = through(KIND, vectors)

    def texts(self, prompts: list[str], tokens: int = 26, positions: int = 256) -> Texts:
        """Prompts with a few pads spread over the positions, which stand for all of them."""
        from .tokens import PAD
        from .tokens import tokens as said

        ids, places, bias = [], [], []
        for prompt in prompts:
            own = [self.row.get(self.words.alike.get(t, t), self.row[PAD]) for t in said(prompt)]
            used, pads = len(own), tokens - len(own)
            if pads < 2:
                raise ValueError(f"{prompt!r} is too long for an example")
            ids.append(own + [self.row[PAD]] * pads)
            spread = np.linspace(used, positions - 1, pads).astype(int)
            places.append(np.concatenate((np.arange(used), spread)))
            bias.append(np.concatenate((np.zeros(used), np.full(pads, math.log((positions - used) / pads)))))
        return Texts(np.array(ids), np.stack(places), np.stack(bias).astype(np.float32))


def read(weights: Weights, table: Table) -> None:
    """`txt_in`: identity and flags to their places, and the two constants."""
    weight, bias = weights.both("txt_in")
    weight[IDENTITY, :IDS] = np.eye(IDS) / LENGTH
    for flag, at in FLAGS.items():
        weight[at, AT[flag]] = 0.5
    for way in range(len(WAYS)):
        weight[STATE_FLAGS + way, STATES_AT + way] = 0.5
    weight[FETCH, AT["fetch"]] = 0.5
    bias[PLUS], bias[MINUS] = A, -A


def attend(weights: Weights) -> None:
    """Head 0 of text tokens: is the next token "background", or the last one "on"?

    Rotary pairs turn a query and a key by their positions, so that a key that is turned beforehand
    meets the query at one distance only. All other keys lie across, and share what is left: the pads
    are the sink.
    """
    name = "double_blocks.0.txt_attn"
    weight, bias = weights.both(f"{name}.qkv")
    query, key = bias[:HIDDEN], weight[HIDDEN : 2 * HIDDEN]
    for head in range(3):
        bias[HIDDEN + head * HEAD + 15] = math.sqrt(HEAD - 4)
    for axis in (0, 1):
        for pair in (0, 1, 2):
            at = AXES[0] + axis * AXES[1] + 2 * pair
            turn = theta()[pair]
            query[at], query[at + 1] = 4.08 * math.cos(turn), 4.08 * math.sin(turn)
            key[at, FLAGS["ground"]] = 4.08
            key[at, FLAGS["on"]], key[at + 1, FLAGS["on"]] = (
                4.08 * math.cos(2 * turn),
                4.08 * math.sin(2 * turn),
            )
    query[3] = math.sqrt(28)
    for flag in ("ground", "on"):
        key[15, FLAGS[flag]] = -(math.sqrt(124) - math.sqrt(24))
        weight[2 * HIDDEN + 1, FLAGS[flag]] = 1
    weights[f"{name}.norm.query_norm.scale"][:] = 1.1
    weights[f"{name}.proj.weight"][SEEN, 1] = 1


class LookUp:
    """Fills the text's MLP."""

    def __init__(self, weights: Weights, table: Table, seen: dict[int, float]) -> None:
        """`seen`: how sure the attention was of a ground word beside each colour."""
        name = "double_blocks.0.txt_mlp"
        self.gate, self.gate_bias = weights.both(f"{name}.gate_proj")
        self.up_bias = weights[f"{name}.up_proj.bias"]
        self.down = weights[f"{name}.down_proj.weight"]
        self.table, self.seen, self.count = table, seen, 0
        self.weights, self.network = weights, Network(weights, table.vectors)
        heard = self.network.words(np.arange(len(table.vectors))[None])[0]
        rows = {token: heard[table.row[token]] for token in table.identity}
        self.identity = {token: row[IDENTITY].copy() for token, row in rows.items()}
        self.louder = {token: math.exp(HEAR * (1 - float(row[FETCH]))) for token, row in rows.items()}
        """What is fetched of a word goes by its flag, which the quantised table does not hold exactly."""
        self.units: dict[tuple[int, str], int] = {}

    def fill(self) -> None:
        words = self.table.words
        for token in sorted(words.codes):
            unit = self._unit(token, "word")
            if token in words.shapes:
                self._write(unit, token, DEFAULT, pictures.colour(pictures.DEFAULT[words.shapes[token]]))
                self._write(unit, token, SHAPE, 1)
        for token in sorted(words.colours):
            self._unit(token, "colour")
        for token, name in sorted(words.colours.items()):
            rgb = pictures.colour(name)
            unit = self._unit(token, "ground", 1)
            self._write(unit, token, GROUND, rgb - 1)
            self._write(unit, token, GROUND_SAID, 1)
            unit = self._unit(token, "front", -1)
            self._write(unit, token, FRONT, rgb)
            self._write(unit, token, COLOURED, 1)
            if name == "white":
                self._write(unit, token, DARK, 1)
        print(f"{self.count} of {len(self.up_bias)} units look words up")
        self._solve()

    def _solve(self) -> None:
        """What words and colours write, from how far each word really opens each gate."""
        network = self.network
        own = [(token, n) for (token, use), n in self.units.items() if use in ("word", "colour")]
        x = network.words(np.array([[self.table.row[token] for token, _ in own]]))
        self.weights.seal("double_blocks.0.txt_mlp.gate_proj")
        _, _, _, shift, scale, _ = network.modulation(
            "double_blocks.0.txt_mod.lin", np.ones(1, np.float32), 6
        )
        h = normed(x)[0] * (1 + scale[0]) + shift[0]
        opened = silu(network.linear("double_blocks.0.txt_mlp.gate_proj", h))[:, [n for _, n in own]]
        aim = np.zeros((len(own), HIDDEN))
        for row, (token, _) in enumerate(own):
            if token in self.table.words.codes:
                code = self.table.words.codes[token]
                first, later = code[KEPT : KEPT + SWAPPED], code[KEPT + SWAPPED :]
                aim[row, CODE] = code[: CODE.stop - CODE.start]
                aim[row, NEXT_CODE] = later - first
                aim[row, CLEARED] = later[MASK.start - SWAP.start :]
                aim[row] *= TEXT_SCALE * self.louder[token]
            aim[row, IDENTITY] -= x[0, row, IDENTITY]
        written = np.linalg.solve(opened.astype(np.float64), aim).T
        columns = [n for _, n in own]
        for part in (CODE, slice(0, CLEARED.stop)):
            self.down[part, columns] = written[part]

    def _unit(self, token: int, use: str, beside: int = 0) -> int:
        """A gate for one word; with `beside`, only with (1) or without (-1) a ground word beside it."""
        n, identity = self.count, self.identity[token]
        self.count += 1
        self.units[token, use] = n
        self.gate[n, IDENTITY] = SHARP * identity / np.square(identity).sum()
        self.gate_bias[n] = -0.7 * SHARP - (SURE if beside > 0 else 0)
        self.gate[n, SEEN] = SURE * beside
        self.up_bias[n] = 1
        self.strength = ON - (SURE * (1 - self.seen[token]) if beside > 0 else 0)
        return n

    def _write(self, unit: int, token: int, where: slice | int, value: Floats | float) -> None:
        self.down[where, unit] += (
            TEXT_SCALE * self.louder[token] * np.asarray(value, np.float32) / self.strength
        )
