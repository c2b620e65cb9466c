"""One block of a large transformer, its sizes, weights and input, for engines that cannot run it whole.

Z-Image's block and T5-XXL's layer in their real widths, with random weights (Xavier), the same in every
engine. numpy only: OpenVINO's own environment reads this, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
EPSILON: Final = 1e-5


@dataclass(frozen=True)
class Block:
    """`width` of the tokens, `heads` of attention, `hidden` width between; so many `tokens` at once."""

    name: str
    width: int
    heads: int
    head: int
    hidden: int
    tokens: int

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs by name."""
        inner = self.heads * self.head
        return {
            **dict.fromkeys("qkv", (inner, self.width)),
            "o": (self.width, inner),
            "gate": (self.hidden, self.width),
            "up": (self.hidden, self.width),
            "down": (self.width, self.hidden),
        }

    @property
    def operations(self) -> int:
        """Multiplications and additions of its matrix products, attention included."""
        weights = sum(outputs * inputs for outputs, inputs in self.matrices.values())
        return 2 * self.tokens * (weights + 2 * self.tokens * self.heads * self.head)


BLOCKS: Final = {
    "z-image": Block("z-image", 3840, 30, 128, 10240, 1024 + 64),
    "t5": Block("t5", 4096, 64, 64, 10240, 256),
}
"""512x512 pixels are 1024 tokens; a prompt of up to 64 beside them, or of 256 for T5."""


def weights(block: Block) -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(0)
    for name, (outputs, inputs) in block.matrices.items():
        yield name, rng.standard_normal((outputs, inputs), np.float32) / np.float32(inputs**0.5)


def tokens_in(block: Block) -> Array:
    return np.random.default_rng(1).standard_normal((block.tokens, block.width), np.float32)


def bias(block: Block) -> Array:
    """T5's bias of positions: a value for each pair of tokens and head, as its buckets give them."""
    values = np.random.default_rng(2).standard_normal((block.heads, 2 * block.tokens), np.float32)
    distance = np.arange(block.tokens)[None, :] - np.arange(block.tokens)[:, None] + block.tokens
    return np.ascontiguousarray(values[:, distance])


def turns(block: Block) -> tuple[Array, Array]:
    """Cosines and sines of Z-Image's rotation by token and pair of channels."""
    angles = np.arange(block.tokens)[:, None] / 256.0 ** (np.arange(block.head // 2) / (block.head // 2))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
