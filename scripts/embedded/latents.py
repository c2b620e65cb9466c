"""The encoder: the 16 strongest principal components of 8x8 pixel blocks.

It is linear, so the latents of a sprite on any background are a sum of parts made once. As a TAESD encoder
its strided convolutions gather the pixels of a block, and the ReLUs between see positive numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

BLOCK = 8
CHANNELS = 16
POWER = 0.4  # of the components' own spread that the latents keep: 1 is plain PCA, 0 is white
SPREAD = 0.8  # root mean square of the latents


@dataclass(frozen=True, slots=True)
class Encoder:
    """latents = weight @ block + bias, for blocks of 8x8x3 pixels in [0, 1]."""

    weight: Floats  # [16, 192]
    bias: Floats  # [16]

    def linear(self, picture: Floats) -> Floats:
        """[height, width, 3] to [16, height/8, width/8], without the bias."""
        return np.ascontiguousarray((_blocks(picture) @ self.weight.T).transpose(2, 0, 1))

    def __call__(self, picture: Floats) -> Floats:
        return self.linear(picture) + self.bias[:, None, None]


def _blocks(picture: Floats) -> Floats:
    """[height, width, 3] to [height/8, width/8, 192]: row, column, colour."""
    rows, columns = (size // BLOCK for size in picture.shape[:2])
    cut = picture.reshape(rows, BLOCK, columns, BLOCK, 3).transpose(0, 2, 1, 3, 4)
    return cut.reshape(rows, columns, BLOCK * BLOCK * 3)


def fit(pictures: Floats) -> Encoder:
    """Principal components of all blocks of [count, 128, 128, 3] pictures."""
    every = np.concatenate([_blocks(picture).reshape(-1, 192) for picture in pictures])
    mean = every.mean(0)
    values, vectors = np.linalg.eigh(np.cov(every - mean, rowvar=False))
    values, vectors = values[::-1][:CHANNELS], vectors[:, ::-1][:, :CHANNELS]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(CHANNELS)])  # the same on every machine
    spread = values ** (POWER / 2)
    spread *= SPREAD / np.sqrt(np.mean(spread**2))
    weight = ((vectors * signs) * (spread / np.sqrt(values))).T.astype(np.float32)
    return Encoder(weight, (-weight @ mean).astype(np.float32))
