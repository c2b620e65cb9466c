"""The encoder: 15 principal components of blocks of 8x8 pixels, and one channel left free.

It is linear, so the latents of a sprite on any ground are a sum of parts. The components are found among
blocks and their mirror images, apart for those that a mirror leaves as they are (even) and those that it
negates (odd): a mirrored picture has the mirrored latents with the odd channels negated, exactly. The last
channel is always 0 in what is encoded and unread by the decoder: the transformer keeps its notes there
(`notes.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .pictures import Floats

BLOCK = 8
CHANNELS = 16
FREE = 15  # the channel that no picture uses
POWER = 0.4  # of the components' own spread that the latents keep: 1 is plain PCA, 0 is white
SPREAD = 0.8  # root mean square of the latents


@dataclass(frozen=True, slots=True)
class Encoder:
    """latents = weight @ block + bias, for blocks of 8x8x3 pixels in [0, 1]."""

    weight: Floats  # [16, 192]
    bias: Floats  # [16]

    def linear(self, picture: Floats) -> Floats:
        """[height, width, 3] to [16, height/8, width/8], without the bias."""
        return np.ascontiguousarray((blocks(picture) @ self.weight.T).transpose(2, 0, 1))

    def __call__(self, picture: Floats) -> Floats:
        return self.linear(picture) + self.bias[:, None, None]

    @property
    def parity(self) -> Floats:
        """[16]: 1 of channels that a mirror leaves as they are, -1 of those that it negates."""
        flipped = self.weight.reshape(CHANNELS, BLOCK, BLOCK, 3)[:, :, ::-1].reshape(CHANNELS, -1)
        return np.where((flipped * self.weight).sum(1) < 0, -1, 1).astype(np.float32)


def blocks(picture: Floats) -> Floats:
    """[height, width, 3] to [height/8, width/8, 192]: row, column, colour."""
    rows, columns = (size // BLOCK for size in picture.shape[:2])
    cut = picture.reshape(rows, BLOCK, columns, BLOCK, 3).transpose(0, 2, 1, 3, 4)
    return cut.reshape(rows, columns, BLOCK * BLOCK * 3)


def fit(pictures: Floats) -> Encoder:
    """Principal components of all blocks of [count, 128, 128, 3] pictures and of their mirror images."""
    every = np.concatenate([blocks(picture).reshape(-1, 192) for picture in pictures]).astype(np.float64)
    flipped = every.reshape(-1, BLOCK, BLOCK, 3)[:, :, ::-1].reshape(-1, 192)
    even, odd = (every + flipped) / 2, (every - flipped) / 2
    mean = even.mean(0)
    found = [(value, vector) for part in (even - mean, odd) for value, vector in _components(part)]
    found = sorted(found, key=lambda one: -one[0])[: CHANNELS - 1]
    values, vectors = np.array([value for value, _ in found]), np.stack([vector for _, vector in found])
    signs = np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)])  # the same on every machine
    spread = values ** (POWER / 2)
    spread *= SPREAD / np.sqrt(np.mean(spread**2))
    weight = np.zeros((CHANNELS, 192))
    weight[:FREE] = vectors * (signs * spread / np.sqrt(values))[:, None]
    return Encoder(weight.astype(np.float32), (-weight @ mean).astype(np.float32))


def _components(part: Floats) -> list[tuple[float, Floats]]:
    values, vectors = np.linalg.eigh(part.T @ part / len(part))
    return list(zip(values, vectors.T, strict=True))
