"""An SD1 model and a ControlNet for it, nearly all zeros: sd.cpp's sizes are fixed, the files are sparse.

Not zero is what makes an embedding or a ControlNet show: the text encoder's way straight through, the UNet's
first convolution, its last block and what that block gets from the first one, and the ControlNet's first
output (`unet.hpp`, `control.hpp` and `clip.hpp` of sd.cpp).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tests.weights import Array, write_safetensors

Shape = tuple[int, ...]
WIDTHS = (320, 640, 1280, 1280)
TIME, TEXT = 1280, 768
CLIP = "cond_stage_model.transformer.text_model."
UNET = "model.diffusion_model."
_ALIVE = ("input_blocks.0.0.", "output_blocks.11.", "out.", "input_hint_block.", "zero_convs.0.0.")


def write_sd1(folder: Path, *, alive: bool = True, middle: bool = True) -> Path:
    """`sd1.safetensors`, 2 GB of which 90 MB take room, and its decoder `sd1-tae.safetensors` beside it.

    Not `alive` it is zeros alone, for engines that do not look; without `middle` it lacks that block.
    """
    write_tae(folder / "sd1-tae.safetensors")
    tensors = [*_clip(), *((UNET + name, shape) for name, shape in _unet())]
    tensors = [each for each in tensors if middle or "middle_block" not in each[0]]
    return _write_sparse(folder / "sd1.safetensors", tensors, alive=alive)


def write_control_net(path: Path, *, alive: bool = True) -> Path:
    """A ControlNet for SD1, 720 MB of which 3 MB take room."""
    return _write_sparse(path, list(_control_net()), alive=alive)


def write_embedding(path: Path, rows: int = 2, width: int = TEXT, kind: str = "f4", seed: int = 0) -> Path:
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(kind)
    return write_safetensors(path, {"emb_params": vectors})


def _weight(name: str, shape: Shape) -> Array | None:
    """None for zeros."""
    rng = np.random.default_rng(len(name))
    part = name.removeprefix(UNET)
    if len(shape) == 1:
        is_norm = (
            "norm" in name or ".in_layers.0." in name or ".out_layers.0." in name or part == "out.0.weight"
        )
        return np.ones(shape, np.float32) if is_norm and name.endswith("weight") else None
    if part.startswith(_ALIVE) or name.startswith(f"{CLIP}embeddings."):
        weight: Array = rng.standard_normal(shape, np.float32)
        weight /= np.float32(math.prod(shape[1:]) ** 0.5)
        return weight
    return None


def _write_sparse(path: Path, tensors: list[tuple[str, Shape]], *, alive: bool) -> Path:
    header, offset = dict[str, Any](), 0
    for name, shape in tensors:
        size = math.prod(shape) * (4 if len(shape) == 1 else 2)
        kind = "F32" if len(shape) == 1 else "F16"
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        begin = file.tell()
        file.truncate(begin + offset)
        for name, shape in tensors if alive else ():
            weight = _weight(name, shape)
            if weight is not None:
                file.seek(begin + header[name]["data_offsets"][0])
                file.write(weight.astype(np.float32 if len(shape) == 1 else np.float16).tobytes())
    return path


_Tensors = Iterator[tuple[str, Shape]]


def _linear(name: str, outputs: int, inputs: int) -> _Tensors:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _conv(name: str, outputs: int, inputs: int, kernel: int = 3) -> _Tensors:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> _Tensors:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _clip() -> _Tensors:
    yield f"{CLIP}embeddings.token_embedding.weight", (49408, TEXT)
    yield f"{CLIP}embeddings.position_embedding.weight", (77, TEXT)
    for layer in (f"{CLIP}encoder.layers.{number}" for number in range(12)):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{part}", TEXT, TEXT)
        yield from _norm(f"{layer}.layer_norm1", TEXT)
        yield from _norm(f"{layer}.layer_norm2", TEXT)
        yield from _linear(f"{layer}.mlp.fc1", 4 * TEXT, TEXT)
        yield from _linear(f"{layer}.mlp.fc2", TEXT, 4 * TEXT)
    yield from _norm(f"{CLIP}final_layer_norm", TEXT)


def _res_block(name: str, inputs: int, outputs: int) -> _Tensors:
    yield from _norm(f"{name}.in_layers.0", inputs)
    yield from _conv(f"{name}.in_layers.2", outputs, inputs)
    yield from _linear(f"{name}.emb_layers.1", outputs, TIME)
    yield from _norm(f"{name}.out_layers.0", outputs)
    yield from _conv(f"{name}.out_layers.3", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{name}.skip_connection", outputs, inputs, 1)


def _transformer(name: str, width: int) -> _Tensors:
    yield from _norm(f"{name}.norm", width)
    yield from _conv(f"{name}.proj_in", width, width, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, context in (("attn1", width), ("attn2", TEXT)):
        yield f"{block}.{attention}.to_q.weight", (width, width)
        yield f"{block}.{attention}.to_k.weight", (width, context)
        yield f"{block}.{attention}.to_v.weight", (width, context)
        yield from _linear(f"{block}.{attention}.to_out.0", width, width)
    yield from _linear(f"{block}.ff.net.0.proj", 8 * width, width)
    yield from _linear(f"{block}.ff.net.2", width, 4 * width)
    for number in (1, 2, 3):
        yield from _norm(f"{block}.norm{number}", width)
    yield from _conv(f"{name}.proj_out", width, width, 1)


def _half() -> _Tensors:
    """What UNet and ControlNet have in common: the way down, and the middle."""
    yield from _linear("time_embed.0", TIME, 320)
    yield from _linear("time_embed.2", TIME, TIME)
    yield from _conv("input_blocks.0.0", 320, 4)
    number, inputs = 1, 320
    for level, width in enumerate(WIDTHS):
        for _ in range(2):
            yield from _res_block(f"input_blocks.{number}.0", inputs, width)
            if level < 3:
                yield from _transformer(f"input_blocks.{number}.1", width)
            number, inputs = number + 1, width
        if level < 3:
            yield from _conv(f"input_blocks.{number}.0.op", width, width)
            number += 1
    yield from _res_block("middle_block.0", 1280, 1280)
    yield from _transformer("middle_block.1", 1280)
    yield from _res_block("middle_block.2", 1280, 1280)


def _unet() -> _Tensors:
    yield from _half()
    skips = [320, 320, 320, 320, 640, 640, 640, 1280, 1280, 1280, 1280, 1280]
    number, inputs = 0, 1280
    for level in (3, 2, 1, 0):
        for turn in range(3):
            block = f"output_blocks.{number}"
            yield from _res_block(f"{block}.0", inputs + skips.pop(), WIDTHS[level])
            if level < 3:
                yield from _transformer(f"{block}.1", WIDTHS[level])
            if level and turn == 2:
                yield from _conv(f"{block}.{1 + (level < 3)}.conv", WIDTHS[level], WIDTHS[level])
            number, inputs = number + 1, WIDTHS[level]
    yield from _norm("out.0", 320)
    yield from _conv("out.2", 4, 320)


def _control_net() -> _Tensors:
    yield from _half()
    hints = (3, 16, 16, 32, 32, 96, 96, 256, 320)
    for place, (inputs, outputs) in enumerate(pairwise(hints)):
        yield from _conv(f"input_hint_block.{2 * place}", outputs, inputs)
    widths = (320, 320, 320, 320, 640, 640, 640, 1280, 1280, 1280, 1280, 1280)
    for number, width in enumerate(widths):
        yield from _conv(f"zero_convs.{number}.0", width, width, 1)
    yield from _conv("middle_block_out.0", 1280, 1280, 1)


def write_tae(path: Path) -> Path:
    """A TAESD of SD1's four latent channels that makes something of everything."""
    tensors: dict[str, Array] = {}
    rng = np.random.default_rng(0)

    def conv(name: str, outputs: int, inputs: int, *, bias: bool = True) -> None:
        weight = rng.standard_normal((outputs, inputs, 3, 3), np.float32) / (3 * inputs**0.5)
        tensors[f"{name}.weight"] = weight.astype(np.float16)
        if bias:
            tensors[f"{name}.bias"] = np.zeros(outputs, np.float32)

    def block(name: str) -> None:
        for part in ("conv.0", "conv.2", "conv.4"):
            conv(f"{name}.{part}", 64, 64)

    encoder, decoder = "tae.encoder.layers", "tae.decoder.layers"
    conv(f"{encoder}.0", 64, 3)
    for number in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        block(f"{encoder}.{number}")
    for number in (2, 6, 10):
        conv(f"{encoder}.{number}", 64, 64, bias=False)
    conv(f"{encoder}.14", 4, 64)
    conv(f"{decoder}.0", 64, 4)
    for number in (2, 3, 4, 7, 8, 9, 12, 13, 14, 17):
        block(f"{decoder}.{number}")
    for number in (6, 11, 16):
        conv(f"{decoder}.{number}", 64, 64, bias=False)
    conv(f"{decoder}.18", 3, 64)
    return write_safetensors(path, tensors)
