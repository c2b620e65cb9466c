"""Batches of noisy latents with their captions' tokens, the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import captions, latents, pictures
from .transformer import patchify

Floats = npt.NDArray[np.float32]

TEXT = 24  # text tokens a sample is trained with; the pads among them stand for all
SHIFT = 2.718  # sd.cpp's schedule for this family: exp(1)
SHAPES = 0.4  # share of drawn shapes
EVERYDAY = 6  # how much oftener an everyday picture is shown
DROPPED = 0.08  # captions left empty, for classifier-free guidance
PLACES = 48  # positions and sizes of each shape


@dataclass(frozen=True, slots=True)
class Batch:
    patches: Tensor  # [batch, 64, 64] x0
    ids: Tensor  # [batch, TEXT] of the dense vocabulary
    positions: Tensor  # [batch, TEXT]
    bias: Tensor  # [batch, TEXT]


class Pictures:
    """All sprites as latents: colour times coverage, and coverage in each colour channel."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.concepts: list[pictures.Concept] = []
        sprites = []
        for concept in pictures.concepts(folder):
            try:
                sprites.append(pictures.glyph(concept.character))
            except ValueError:  # newer than the font
                continue
            self.concepts.append(concept)
        self.sprites = np.stack(sprites)
        places = np.random.default_rng(seed)
        self.colours = {name: pictures.colour(name) for name in pictures.COLOURS}
        self.encoder = encoder = latents.fit(self.on_backgrounds())
        self.base = encoder.bias[:, None, None]
        self.full = self._channels(np.ones((pictures.SIZE, pictures.SIZE), np.float32))
        self.glyphs = np.stack([encoder.linear(sprite[..., :3]) for sprite in self.sprites])
        self.covers = np.stack([self._channels(sprite[..., 3]) for sprite in self.sprites])
        self.shapes = {
            shape: np.stack([self._channels(_placed(shape, places)) for _ in range(PLACES)])
            for shape in pictures.SHAPES
        }

    def on_backgrounds(self) -> Floats:
        """Every emoji once on white or on a colour, [count, 128, 128, 3]."""
        named = list(pictures.COLOURS)
        grounds = [
            pictures.colour("white" if i % 2 else named[i // 2 % 12]) for i in range(len(self.sprites))
        ]
        return np.stack(
            [s[..., :3] + (1 - s[..., 3:]) * g for s, g in zip(self.sprites, grounds, strict=True)]
        )

    def _channels(self, mask: Floats) -> Floats:
        """[3, 16, 16, 16]: the latents of the mask in red, green and blue."""
        return np.stack([self.encoder.linear(mask[..., None] * one) for one in np.eye(3, dtype=np.float32)])

    def emoji(self, index: int, background: str) -> Floats:
        ground = np.tensordot(self.colours[background], self.full - self.covers[index], 1)
        return self.base + self.glyphs[index] + ground

    def shape(self, prompt: captions.ShapePrompt, place: int) -> Floats:
        cover = self.shapes[prompt.shape][place]
        front, ground = self.colours[prompt.colour], self.colours[prompt.background]
        return self.base + np.tensordot(front - ground, cover, 1) + np.tensordot(ground, self.full, 1)

    @cached_property
    def vocabulary(self) -> list[int]:
        """Every token that a caption can have, with the template's and the pad, in order."""
        words = [
            *captions.PLAIN,
            *captions.ON,
            *pictures.COLOURS,
            *pictures.SHAPES,
            "a {} background with a {}",
        ]
        words += [name for concept in self.concepts for name in concept.names]
        every = {captions.PAD}
        for text in words:
            # A word can stand first, after another, or before a comma, which joins no letters.
            for said in (text, text.format("x", "y"), f"x {text}"):
                every.update(captions.tokens(said))
        return sorted(every)

    def sampling(self) -> npt.NDArray[np.float64]:
        weights = np.array([EVERYDAY if concept.everyday else 1 for concept in self.concepts], np.float64)
        return weights / weights.sum()


def _placed(shape: str, rng: np.random.Generator) -> Floats:
    x, y = rng.uniform(56, 72, 2)
    return pictures.shape_mask(shape, x, y, rng.uniform(36, 46))


class Batches:
    def __init__(self, data: Pictures, size: int, seed: int) -> None:
        self.data, self.size = data, size
        self.rng = np.random.default_rng(seed)
        self.dense = {token: i for i, token in enumerate(data.vocabulary)}
        self.chances = data.sampling().cumsum()

    def draw(self) -> Batch:
        rng, samples, texts = self.rng, [], []
        for _ in range(self.size):
            if rng.random() < SHAPES:
                caption, prompt = captions.shape_caption(rng)
                samples.append(self.data.shape(prompt, int(rng.integers(PLACES))))
            else:
                index = int(self.chances.searchsorted(rng.random()))
                caption, background = captions.emoji_caption(rng, self.data.concepts[index])
                samples.append(self.data.emoji(index, background))
            texts.append(self.text("" if rng.random() < DROPPED else caption))
        ids, positions, bias = (np.stack(part) for part in zip(*texts, strict=True))
        x0 = torch.from_numpy(np.stack(samples))
        return Batch(patchify(x0), torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(bias))

    def text(self, caption: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
        """A caption and enough drawn pads to make `TEXT` tokens; too long captions lose their last words."""
        said = captions.tokens(caption)
        while len(said) > TEXT - 2:
            caption = caption.rsplit(" ", 1)[0]
            said = captions.tokens(caption)
        used, pads = len(said), TEXT - len(said)
        places = np.sort(self.rng.choice(captions.POSITIONS - used, pads, replace=False)) + used
        ids = np.array([self.dense[token] for token in said] + [self.dense[captions.PAD]] * pads)
        weight = np.log((captions.POSITIONS - used) / pads)
        bias = np.concatenate((np.zeros(used), np.full(pads, weight))).astype(np.float32)
        return ids, np.concatenate((np.arange(used), places)), bias
