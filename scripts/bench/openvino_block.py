"""One transformer block on OpenVINO, of the same weights and input as `ggml_block`: seconds as JSON.

Runs with the Python of that bench's own environment: `openvino_block.py BLOCK PRECISION THREADS [FILE.npy]`.
PRECISION is default, f32, or int8: weights of 8 bits with a scale for each output, as OpenVINO's own
compression makes them. FILE gets what comes out.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.blocks import BLOCKS, EPSILON, Block, bias, tokens_in, turns, weights

RUNS = 2


class Graph:
    def __init__(self, block: Block, int8: bool) -> None:
        self.block = block
        self.matrices = {name: constant(values, int8) for name, values in weights(block)}
        self.ones = ops.constant(np.ones(block.width, np.float32))
        self.tokens = ops.parameter([block.tokens, block.width], np.float32)

    def model(self) -> Any:
        result = self.t5() if self.block.name == "t5" else self.z_image()
        return openvino.Model([result], [self.tokens])

    def z_image(self) -> Any:
        x = self.tokens
        query, key, value = (self._headed(self._times(name, self._modulated(x))) for name in "qkv")
        query, key = (self._turned(normed(each)) for each in (query, key))
        attended = ops.multiply(normed(self._times("o", self._attention(query, key, value))), self.ones)
        x = ops.add(ops.multiply(attended, ops.tanh(self.ones)), x)
        inner = self._modulated(x)
        wide = ops.multiply(ops.swish(self._times("gate", inner)), self._times("up", inner))
        narrow = ops.multiply(normed(self._times("down", wide)), self.ones)
        return ops.add(ops.multiply(narrow, ops.tanh(self.ones)), x)

    def t5(self) -> Any:
        x = self.tokens
        inner = ops.multiply(normed(x), self.ones)
        query, key, value = (self._headed(self._times(name, inner)) for name in "qkv")
        key = ops.multiply(key, np.float32(self.block.head**0.5))
        x = ops.add(self._times("o", self._attention(query, key, value, bias(self.block)[None])), x)
        inner = ops.multiply(normed(x), self.ones)
        wide = ops.multiply(ops.gelu(self._times("gate", inner), "tanh"), self._times("up", inner))
        return ops.add(self._times("down", wide), x)

    def _times(self, name: str, x: Any) -> Any:
        return ops.matmul(x, self.matrices[name], False, True)

    def _modulated(self, x: Any) -> Any:
        scaled = ops.multiply(normed(x), self.ones)
        return ops.add(scaled, ops.multiply(scaled, self.ones))

    def _headed(self, x: Any) -> Any:
        """[1, heads, tokens, head]"""
        shape = [1, self.block.tokens, self.block.heads, self.block.head]
        return ops.transpose(ops.reshape(x, shape, False), [0, 2, 1, 3])

    def _turned(self, x: Any) -> Any:
        block = self.block
        pairs = ops.reshape(x, [1, block.heads, block.tokens, block.head // 2, 2], False)
        even, odd = (ops.gather(pairs, np.int64(number), np.int64(4)) for number in (0, 1))
        cosines, sines = (values[None, None] for values in turns(block))
        first = ops.subtract(ops.multiply(even, cosines), ops.multiply(odd, sines))
        second = ops.add(ops.multiply(even, sines), ops.multiply(odd, cosines))
        both = ops.concat([ops.unsqueeze(each, np.int64(4)) for each in (first, second)], 4)
        return ops.reshape(both, [1, block.heads, block.tokens, block.head], False)

    def _attention(self, query: Any, key: Any, value: Any, mask: Any = None) -> Any:
        more = [] if mask is None else [ops.constant(mask)]
        out = ops.scaled_dot_product_attention(query, key, value, *more)
        width = self.block.heads * self.block.head
        return ops.reshape(ops.transpose(out, [0, 2, 1, 3]), [self.block.tokens, width], False)


def normed(x: Any) -> Any:
    squares = ops.reduce_mean(ops.multiply(x, x), np.array([-1]), True)
    return ops.divide(x, ops.sqrt(ops.add(squares, np.float32(EPSILON))))


def constant(values: Any, int8: bool) -> Any:
    if not int8:
        return ops.constant(values)
    scale = np.abs(values).max(1, keepdims=True) / 127
    whole = ops.constant(np.rint(values / scale).astype(np.int8))
    return ops.multiply(ops.convert(whole, "f32"), scale.astype(np.float32))


def main() -> None:
    name, precision, threads, *save = sys.argv[1:]
    block = BLOCKS[name]
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": int(threads)}
    if precision == "f32":
        hints["INFERENCE_PRECISION_HINT"] = "f32"
    program = openvino.Core().compile_model(Graph(block, precision == "int8").model(), "CPU", hints)
    values = tokens_in(block)
    times = []
    for _ in range(RUNS + 1):
        began, worked = time.perf_counter(), time.process_time()
        out = program([values])[0]
        times.append((time.perf_counter() - began, time.process_time() - worked))
    if save:
        np.save(save[0], out)
    print(json.dumps({"block": min(times[1:])[0], "block_cpu": min(cpu for _, cpu in times[1:])}))


if __name__ == "__main__":
    main()
