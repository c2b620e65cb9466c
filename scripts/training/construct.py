"""The weights, block by block: each is filled, rounded as its file will be, and run on all names for the
next one.
"""

from __future__ import annotations

import numpy as np

from . import colours, decode, fetch, finish, places, text, timing
from .codes import Codes, Pictures
from .latents import Encoder
from .network import HIDDEN, PATCH, PLACES, SIDE, Network, Texts, Weights
from .pictures import COLOURS, SHAPES, Floats, colour, glyph
from .stream import COLUMN, FRONT, GROUND, ROW, SEEN, STATE_FLAGS, STATES, P, balance
from .tokens import single, template
from .words import Concept, Words

SHAPE_CARE = 3.0  # how much more than a glyph a shape counts


class Construction:
    """`weights` and `table.vectors` are what the files hold."""

    def __init__(self, encoder: Encoder, concepts: tuple[Concept, ...]) -> None:
        self.known = Pictures(encoder, [glyph(concept.character) for concept in concepts])
        self.care = np.ones(self.known.count)
        self.care[len(concepts) :] = SHAPE_CARE
        self.codes = Codes(self.known, self.care)
        self.words = Words(concepts, self.codes.whole)
        self.names = [concept.names[0] for concept in concepts] + list(SHAPES)
        self.table = text.Table(self.words)
        self.weights = Weights()
        self.network = Network(self.weights, self.table.vectors)
        self._double()
        self._singles()

    def _double(self) -> None:
        weights = self.weights
        timing.clock(weights)
        timing.norms(weights)
        places.read(weights, self.known.basis.rows)
        text.read(weights, self.table)
        balance(weights, "img_in")
        balance(weights, "txt_in")
        places.attend(weights)
        text.attend(weights)
        for part in ("img_attn", "txt_attn"):
            self._seal(f"double_blocks.0.{part}")
        look = text.LookUp(weights, self.table, self._sure())
        look.fill()
        img, _ = self.network.attended(*self._start(texts := self.table.texts(self.names[::10])), texts)
        measured = img.reshape(-1, SIDE, SIDE, HIDDEN)
        rows = places.edges(measured[..., ROW].transpose(0, 2, 1))
        places.decide(weights, rows, places.edges(measured[..., COLUMN]))
        self._seal("double_blocks.0.img_mlp")
        anchor, after = template()
        targets = [
            self.table.row[t] for t in (*anchor, *dict.fromkeys(t for t in after if after.count(t) == 1))
        ]
        heard = self.network.words(np.array([targets]))[0]
        flags = np.array([heard[way, STATE_FLAGS + way] for way in range(STATES.stop - STATES.start + 1)])
        fetch.first(weights, flags)
        self._seal("single_blocks.0")
        self._calibrate(look)
        self._seal("double_blocks.0")

    def _singles(self) -> None:
        weights, known = self.weights, self.known
        used = colours.settle(weights)
        finish.expect_white(weights, known, used)
        places.lay(weights)
        self._seal("single_blocks.1")
        fetch.swap(weights, decode.BLOCKS[0])
        fetch.clear(weights, decode.BLOCKS[1])
        patterns, said = decode.share(known, self.codes, self.care)
        texts = self.table.texts(self.names)
        stream, t = self._run(texts, 2), np.ones(len(texts), np.float32)
        left = known.shown
        for block, mine, masks in zip(
            decode.BLOCKS, patterns, (np.zeros_like(known.masks), known.masks), strict=True
        ):
            aim = said[0] if block == decode.BLOCKS[0] else left
            aim = np.concatenate((aim, masks), -1)
            made = decode.fill(weights, block, self.network, stream[:, -PLACES:], mine, aim, self.care)
            left = left - made[..., : P.stop - P.start]
            off = np.square(made[..., -masks.shape[-1] :] - masks).sum() / max(1e-9, np.square(masks).sum())
            rest = np.square(left).sum() / np.square(known.shown).sum()
            print(f"block {block}: {rest:.4f} of the pictures left, {off:.4f} of masks")
            self._seal(f"single_blocks.{block}")
            stream = self.network.single(stream, t, texts, block)
        finish.fill(weights, known)
        timing.widen(weights, finish.LAST, stream[:, -PLACES:])
        self._seal(f"single_blocks.{finish.LAST}")
        stream = self.network.single(stream, t, texts, finish.LAST)
        timing.velocity(weights, self.network, known.basis.rows, stream[:, -PLACES:])
        finish.outside(weights, self.network, known)

    def _seal(self, start: str) -> None:
        """A finished part: its sums are balanced, and its matrices rounded."""
        balance(self.weights, start)
        self.weights.seal(start)

    def _start(self, texts: Texts) -> tuple[Floats, Floats, Floats]:
        """Image and text streams and the time: noise whose notes tell of a picture begun here,
        to lie the plain way.
        """
        noise = np.random.default_rng(0).normal(size=(len(texts), PLACES, PATCH)).astype(np.float32)
        noise[..., -4:] = (1, -1, 0, 0)
        return (
            self.network.linear("img_in", noise),
            self.network.words(texts.ids),
            np.ones(len(texts), np.float32),
        )

    def _run(self, texts: Texts, blocks: int) -> Floats:
        """The stream after the double block and so many single ones."""
        img, txt, t = self._start(texts)
        img, txt = self.network.attended(img, txt, t, texts)
        x = np.concatenate((self.network.looked_up(txt, t, "txt"), self.network.looked_up(img, t, "img")), 1)
        for block in range(blocks):
            x = self.network.single(x, t, texts, block)
        return x

    def _sure(self) -> dict[int, float]:
        """What the attention says of each colour that stands before "background"."""
        prompts = [f"a cat on a {name} background" for name in COLOURS]
        texts = self.table.texts(prompts)
        _, txt = self.network.attended(*self._start(texts), texts)
        found = {}
        for row, name in enumerate(COLOURS):
            token = single(name)
            assert token is not None
            found[token] = float(txt[row, texts.ids[row] == self.table.row[token], SEEN].mean())
        print(
            "sure of grounds:",
            {name: round(one, 2) for name, one in zip(COLOURS, found.values(), strict=True)},
        )
        return found

    def _calibrate(self, look: text.LookUp) -> None:
        """Colours as they reach the image become what they should be: one factor for each word and use."""
        balance(self.weights, "double_blocks.0.txt_mlp")
        down = self.weights["double_blocks.0.txt_mlp.down_proj.weight"]
        names = list(COLOURS)
        fronts = [f"a {name} {SHAPES[i % 7]} on a {names[i - 5]} background" for i, name in enumerate(names)]
        grounds = [f"a {names[i - 7]} {SHAPES[i % 7]} on a {name} background" for i, name in enumerate(names)]
        for use, where, prompts in (("front", FRONT, fronts), ("ground", GROUND, grounds)):
            seen = self._arrives(self.table.texts(prompts))[:, where]
            for i, name in enumerate(names):
                aim = colour(name) - (1 if use == "ground" else 0)
                token = single(name)
                assert token is not None
                if aim.any():
                    down[where, look.units[token, use]] *= float((seen[i] * aim).sum() / (seen[i] ** 2).sum())

    def _arrives(self, texts: Texts) -> Floats:
        """What image tokens have on average after the first single block: [batch, HIDDEN]."""
        x = self._run(texts, 1)[:, -PLACES:]
        return np.asarray(x.mean(1))
