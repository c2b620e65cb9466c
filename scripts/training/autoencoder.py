"""The autoencoder as the tensors of a TAESD with 16 channels (sd.cpp's `tae.hpp`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .latents import CHANNELS, Encoder
from .pictures import Floats

WIDTH = 64
ENCODER, DECODER = "tae.encoder.layers.", "tae.decoder.layers."
GATHERING = ((2, 1), (6, 2))  # layers that put 2x2 cells into channels, and how far apart those are in pixels


def encoder_tensors(encoder: Encoder) -> dict[str, Floats]:
    """The linear encoder as TAESD's layers: two gather 2x2 cells each, one projects, the last subtracts.

    Components come out twice, as they are and negated, since the ReLUs between keep only what is positive.
    """
    tensors: dict[str, Floats] = {}

    def conv(layer: str, kernel: Floats, bias: Floats | None) -> None:
        tensors[f"{ENCODER}{layer}.weight"] = kernel.astype(np.float32)
        if bias is not None:
            tensors[f"{ENCODER}{layer}.bias"] = bias.astype(np.float32)

    first = np.zeros((WIDTH, 3, 3, 3))
    first[:3, :, 1, 1] = np.eye(3)
    conv("0", first, np.zeros(WIDTH))
    for block in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        for part in (0, 2, 4):
            conv(f"{block}.conv.{part}", np.zeros((WIDTH, WIDTH, 3, 3)), np.zeros(WIDTH))
    held = [(0, 0, colour) for colour in range(3)]
    for layer, reach in GATHERING:
        kernel = np.zeros((WIDTH, WIDTH, 3, 3))
        for place, (dy, dx) in enumerate(np.ndindex(2, 2)):
            for channel in range(len(held)):
                kernel[place * len(held) + channel, channel, 1 + dy, 1 + dx] = 1
        held = _gathered(held, reach)
        conv(str(layer), kernel, None)
    weight = encoder.weight.reshape(CHANNELS, 8, 8, 3)
    kernel = np.zeros((WIDTH, WIDTH, 3, 3))
    for dy, dx in np.ndindex(2, 2):
        for channel, (row, column, colour) in enumerate(held):
            pixel = weight[:, row + 4 * dy, column + 4 * dx, colour]
            kernel[:CHANNELS, channel, 1 + dy, 1 + dx] = pixel
            kernel[CHANNELS : 2 * CHANNELS, channel, 1 + dy, 1 + dx] = -pixel
    conv("10", kernel, None)
    last = np.zeros((CHANNELS, WIDTH, 3, 3))
    last[:, :CHANNELS, 1, 1] = np.eye(CHANNELS)
    last[:, CHANNELS : 2 * CHANNELS, 1, 1] = -np.eye(CHANNELS)
    conv("14", last, encoder.bias)
    return tensors


def read_encoder(tensors: Mapping[str, Floats]) -> Encoder:
    """The linear encoder back from its tensors."""
    held = [(0, 0, colour) for colour in range(3)]
    for _, reach in GATHERING:
        held = _gathered(held, reach)
    kernel = tensors[f"{ENCODER}10.weight"]
    weight = np.zeros((CHANNELS, 8, 8, 3), np.float32)
    for dy, dx in np.ndindex(2, 2):
        for channel, (row, column, colour) in enumerate(held):
            weight[:, row + 4 * dy, column + 4 * dx, colour] = kernel[:CHANNELS, channel, 1 + dy, 1 + dx]
    return Encoder(weight.reshape(CHANNELS, -1), tensors[f"{ENCODER}14.bias"])


def _gathered(held: list[tuple[int, int, int]], reach: int) -> list[tuple[int, int, int]]:
    """Row, column and colour of the pixel in each channel after 2x2 cells `reach` apart were put together."""
    return [
        (row + dy * reach, column + dx * reach, c) for dy, dx in np.ndindex(2, 2) for row, column, c in held
    ]


def decode(tensors: Mapping[str, Floats], latents: Floats) -> Floats:
    """[16, h, w] to a picture [8h, 8w, 3] in [0, 1], as sd.cpp's decoder computes it."""

    def conv(x: Floats, layer: str) -> Floats:
        kernel = tensors[f"{DECODER}{layer}.weight"]
        bias = tensors.get(f"{DECODER}{layer}.bias", np.zeros(len(kernel), np.float32))
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        columns = seen.transpose(0, 3, 4, 1, 2).reshape(-1, x.shape[1] * x.shape[2])
        out = kernel.reshape(len(kernel), -1) @ columns + bias[:, None]
        return np.asarray(out.reshape(-1, *x.shape[1:]), np.float32)

    def block(x: Floats, layer: int) -> Floats:
        h = np.maximum(conv(x, f"{layer}.conv.0"), 0)
        h = np.maximum(conv(h, f"{layer}.conv.2"), 0)
        return np.asarray(np.maximum(x + conv(h, f"{layer}.conv.4"), 0))

    x = np.maximum(conv(3 * np.tanh(latents / 3), "0"), 0)
    for stage in (2, 7, 12):
        for layer in range(stage, stage + 3):
            x = block(x, layer)
        x = conv(x.repeat(2, 1).repeat(2, 2), str(stage + 4))
    return np.asarray(conv(block(x, 17), "18").clip(0, 1).transpose(1, 2, 0))
