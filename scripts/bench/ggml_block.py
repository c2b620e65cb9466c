"""One transformer block on an engine's own ggml: run with PYTHONPATH naming the build; seconds as JSON.

python -m scripts.bench.ggml_block z-image Q8_0 --threads 1 [--flash-attention] [--save FILE.npy]

The graph is sd.cpp's (z_image.hpp, t5.hpp, rope.hpp, `ggml_ext_attention_ext`), but that queries, keys and
values have matrices of their own. sd.cpp itself runs these models whole only: it fixes their numbers of
layers. `block_cpu` are the processor's seconds of all threads, `block` the clock's.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from pathlib import Path

import numpy as np
import stable_diffusion_cpp.stable_diffusion_cpp as low

from scripts.bench.blocks import BLOCKS, EPSILON, Block, bias, tokens_in, turns, weights
from scripts.bench.ggml import TYPES, Ggml, Tensor

KEYS_PADDED = 256
"""To what multiple sd.cpp pads the keys for flash attention."""
ZERO = ctypes.c_float(0)


class Graph:
    """One block's weights and operations."""

    def __init__(self, ggml: Ggml, block: Block, kind: str, flash: bool) -> None:
        self.ggml, self.block, self.flash = ggml, block, flash
        self.matrices = {
            name: ggml.constant(kind, inputs, outputs) for name, (outputs, inputs) in block.matrices.items()
        }
        self.ones = ggml.constant("F32", block.width)
        self.tokens = ggml.constant("F32", block.width, block.tokens)
        self.extra = self._extra()
        keys = -(-block.tokens // KEYS_PADDED) * KEYS_PADDED
        self.padding = keys - block.tokens
        self.mask = ggml.constant("F16", keys, block.tokens)
        ggml.allocate()
        for name, values in weights(block):
            ggml.put(self.matrices[name], ggml.quantised(values, kind))
        ggml.put(self.ones, np.ones(block.width, np.float32))
        ggml.put(self.tokens, tokens_in(block))
        ggml.put(self.extra, self._extra_values())
        mask = np.zeros((block.tokens, keys), np.float16)
        mask[:, block.tokens :] = -np.inf
        ggml.put(self.mask, mask)

    def _extra(self) -> Tensor:
        size, block = self.ggml.constant, self.block
        if block.name == "t5":
            return size("F32", block.tokens, block.tokens, block.heads)
        return size("F32", 2, 2, block.head // 2, block.tokens)

    def _extra_values(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """T5's bias of positions, or the matrices of the rotation."""
        if self.block.name == "t5":
            return bias(self.block)
        cosines, sines = turns(self.block)
        rows = np.stack([cosines, -sines], -1), np.stack([sines, cosines], -1)
        return np.stack(rows, -2)

    def result(self) -> Tensor:
        return self.t5() if self.block.name == "t5" else self.z_image()

    def z_image(self) -> Tensor:
        op, x = self.ggml.op, self.tokens
        heads = [self._headed(self._times(name, self._modulated(x))) for name in "qkv"]
        query, key = (self._turned(self._normed(each, None)) for each in heads[:2])
        attended = self._normed(self._times("o", self._attention(query, key, heads[2])), self.ones)
        x = op("add", op("mul", attended, op("tanh", self.ones)), x)
        inner = self._modulated(x)
        wide = op("swiglu_split", self._times("gate", inner), self._times("up", inner))
        narrow = self._normed(self._times("down", wide), self.ones)
        return op("add", op("mul", narrow, op("tanh", self.ones)), x)

    def t5(self) -> Tensor:
        op, x = self.ggml.op, self.tokens
        query, key, value = (
            self._headed(self._times(name, self._normed(x, self.ones))) for name in "qkv"
        )  # fmt: skip
        key = op("scale", key, ctypes.c_float(self.block.head**0.5))
        query, key = (op("cont", op("permute", each, 0, 2, 1, 3)) for each in (query, key))
        x = op("add", self._times("o", self._attention(query, key, value)), x)
        inner = self._normed(x, self.ones)
        wide = op("mul", op("gelu", self._times("gate", inner)), self._times("up", inner))
        return op("add", self._times("down", wide), x)

    def _times(self, name: str, x: Tensor) -> Tensor:
        return self.ggml.op("mul_mat", self.matrices[name], x)

    def _normed(self, x: Tensor, scale: Tensor | None) -> Tensor:
        normed = self.ggml.op("rms_norm", x, ctypes.c_float(EPSILON))
        return normed if scale is None else self.ggml.op("mul", normed, scale)

    def _modulated(self, x: Tensor) -> Tensor:
        normed = self._normed(x, self.ones)
        return self.ggml.op("add", normed, self.ggml.op("mul", normed, self.ones))

    def _headed(self, x: Tensor) -> Tensor:
        return self.ggml.op("reshape_3d", x, self.block.head, self.block.heads, self.block.tokens)

    def _turned(self, x: Tensor) -> Tensor:
        """rope.hpp's `apply_rope`: [head, heads, tokens] to [head, tokens, heads]."""
        op, block = self.ggml.op, self.block
        half, tokens, heads = block.head // 2, block.tokens, block.heads
        x = op("cont", op("permute", x, 0, 2, 1, 3))
        x = op("cont", op("permute", op("reshape_4d", x, 2, half, tokens, heads), 3, 0, 1, 2))
        plane = 4 * half * tokens
        pairs = self.ggml.constant_like(2, half, tokens, heads)
        parts = [
            op("view_3d", x, half, tokens, heads, 4 * half, plane, number * plane * heads)
            for number in (0, 1)
        ]  # fmt: skip
        parts = [op("repeat", op("reshape_4d", each, 1, half, tokens, heads), pairs) for each in parts]
        turn = op("cont", op("permute", self.extra, 3, 0, 1, 2))
        size = 4 * 2 * half
        factors = [
            op("view_3d", turn, 2, half, tokens, 8, size, number * size * tokens) for number in (0, 1)
        ]  # fmt: skip
        turned = op("add", *(op("mul", part, factor) for part, factor in zip(parts, factors, strict=True)))
        return op("reshape_3d", turned, block.head, tokens, heads)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries and keys are [head, tokens, heads], values [head, heads, tokens]; [width, tokens]."""
        op, block = self.ggml.op, self.block
        scale = ctypes.c_float(block.head**-0.5)
        if self.flash and block.name != "t5":
            out = self._flash(query, key, value, scale)
        else:
            value = op("cont", op("permute", value, 1, 2, 0, 3))
            logits = op("scale", self.ggml.precise(op("mul_mat", key, query)), scale)
            if block.name == "t5":
                logits = op("add", logits, self.extra)
            out = op("mul_mat", value, op("soft_max", logits))
            out = op("cont", op("permute", out, 0, 2, 1, 3))
        return op("reshape_2d", out, block.heads * block.head, block.tokens)

    def _flash(self, query: Tensor, key: Tensor, value: Tensor, scale: ctypes.c_float) -> Tensor:
        op, half = self.ggml.op, ctypes.c_int(TYPES["F16"])
        value = op("cont", op("permute", value, 0, 2, 1, 3))
        key, value = (op("cast", op("pad", each, 0, self.padding, 0, 0), half) for each in (key, value))
        return op("flash_attn_ext", query, key, value, self.mask, scale, ZERO, ZERO)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("block", choices=BLOCKS)
    parser.add_argument("kind", choices=("F16", "Q8_0", "Q4_0", "Q4_K"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=2, help="measured, after one that warms up")
    parser.add_argument("--flash-attention", action="store_true")
    parser.add_argument("--save", type=Path, help="what comes out, as a file of numpy's")
    options = parser.parse_args()
    block = BLOCKS[options.block]
    ggml = Ggml(Path(low._lib._name), options.threads)
    result = Graph(ggml, block, options.kind, options.flash_attention).result()
    ggml.build(result)
    ggml.compute()
    times = []
    for _ in range(options.runs):
        began, worked = time.perf_counter(), time.process_time()
        ggml.compute()
        times.append((time.perf_counter() - began, time.process_time() - worked))
    if options.save:
        np.save(options.save, ggml.get(result, (block.tokens, block.width)))
    print(json.dumps({"block": min(times)[0], "block_cpu": min(cpu for _, cpu in times)}))


if __name__ == "__main__":
    main()
