"""The Ovis-Image transformer (Flux with gated MLPs) in numpy, with sd.cpp's tensor names (`flux.hpp`).

Sizes are free but for heads of 128. The text encoder is a table of token vectors and a norm (Qwen3 of no
layers). The construction fills the weights of one block, runs its examples through it, and reads off what
the next one needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import gguf
import numpy as np

from .pictures import Floats

HIDDEN = 384
HEAD = 128
HEADS = HIDDEN // HEAD
AXES = (16, 56, 56)  # rotary dimensions of index, row and column
CONTEXT = 64  # width of a token's vector
PATCH = 64  # 2x2 latents of 16 channels
SIDE = 8  # patches along a picture
PLACES = SIDE * SIDE
SINGLES = 5
UNITS = 4 * HIDDEN  # of each MLP
EPSILON = 1e-6
TABLE = gguf.GGMLQuantizationType.Q4_0  # which sd.cpp looks rows up in
FINE = ("img_in", "txt_in", "time_in", "final_layer")  # small and at the ends: kept as F16


def silu(x: Floats) -> Floats:
    return np.asarray(x / (1 + np.exp(-x.clip(-60))), np.float32)


def through(kind: gguf.GGMLQuantizationType, value: Floats) -> Floats:
    """A matrix as the engine will read it."""
    return np.asarray(gguf.dequantize(gguf.quantize(value.astype(np.float32), kind), kind), np.float32)


def rounded(x: Floats) -> Floats:
    """Numbers as a layer in Q8_0 reads them: 32 neighbours in 255 steps up to the greatest of them."""
    parts = x.reshape(*x.shape[:-1], -1, 32)
    step = np.abs(parts).max(-1, keepdims=True) / 127
    return np.asarray((np.round(parts / np.maximum(step, 1e-30)) * step).reshape(x.shape), np.float32)


class Weights(dict[str, Floats]):
    """All tensors of the transformer by name, of zeros; query and key norms of ones."""

    def __init__(self) -> None:
        super().__init__()
        h = HIDDEN
        self._linear("img_in", PATCH, h)
        self._linear("time_in.in_layer", 256, h)
        self._linear("time_in.out_layer", h, h)
        self["txt_norm.scale"] = np.ones(CONTEXT, np.float32)
        self._linear("txt_in", CONTEXT, h)
        for stream in ("double_blocks.0.img", "double_blocks.0.txt"):
            self._linear(f"{stream}_mod.lin", h, 6 * h)
            self._linear(f"{stream}_attn.qkv", h, 3 * h)
            self._norms(f"{stream}_attn.norm")
            self._linear(f"{stream}_attn.proj", h, h)
            self._linear(f"{stream}_mlp.gate_proj", h, UNITS)
            self._linear(f"{stream}_mlp.up_proj", h, UNITS)
            self._linear(f"{stream}_mlp.down_proj", UNITS, h)
        for block in range(SINGLES):
            self._linear(f"single_blocks.{block}.modulation.lin", h, 3 * h)
            self._linear(f"single_blocks.{block}.linear1", h, 3 * h + 2 * UNITS)
            self._norms(f"single_blocks.{block}.norm")
            self._linear(f"single_blocks.{block}.linear2", h + UNITS, h)
        self._linear("final_layer.adaLN_modulation.1", h, 2 * h)
        self._linear("final_layer.linear", h, PATCH)

    def _linear(self, name: str, inputs: int, outputs: int) -> None:
        self[f"{name}.weight"] = np.zeros((outputs, inputs), np.float32)
        self[f"{name}.bias"] = np.zeros(outputs, np.float32)

    def _norms(self, name: str) -> None:
        for what in ("query", "key"):
            self[f"{name}.{what}_norm.scale"] = np.ones(HEAD, np.float32)

    def both(self, name: str) -> tuple[Floats, Floats]:
        """Weight and bias of a layer, to be filled in place."""
        return self[f"{name}.weight"], self[f"{name}.bias"]

    def seal(self, start: str) -> None:
        """Round the matrices of a finished block as its file will, so that the blocks after it
        make up for that.
        """
        for name, value in self.items():
            if name.startswith(start) and value.ndim == 2 and not name.startswith(FINE):
                value[:] = through(gguf.GGMLQuantizationType.Q8_0, value)


@dataclass(frozen=True)
class Texts:
    """Tokens of prompts, with a few pads that stand for all: `ids` count rows of `table`."""

    ids: np.ndarray  # [batch, tokens]
    positions: np.ndarray  # [batch, tokens]
    bias: Floats  # [batch, tokens]: logarithm of how many tokens each stands for

    def __len__(self) -> int:
        return len(self.ids)


class Network:
    """Runs the weights filled so far. `table` [rows, CONTEXT] are the token vectors in use."""

    def __init__(self, weights: Weights, table: Floats) -> None:
        self.w, self.table = weights, table

    def linear(self, name: str, x: Floats) -> Floats:
        """One layer; of those in Q8_0 the engine rounds what they read, too."""
        if not name.startswith(FINE):
            x = rounded(x)
        return np.asarray(x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"], np.float32)

    def words(self, ids: np.ndarray) -> Floats:
        """Text tokens as the first block sees them; the encoder's norm and the transformer's are the same."""
        return self.linear("txt_in", rms(rms(self.table[ids])))

    def features(self, t: Floats) -> Floats:
        """What modulations are linear in: [batch, HIDDEN] for times [batch]."""
        angles = 1000 * t[:, None] * np.exp(-math.log(10_000) * np.arange(128) / 128)
        waves = np.concatenate((np.cos(angles), np.sin(angles)), -1).astype(np.float32)
        return silu(self.linear("time_in.out_layer", silu(self.linear("time_in.in_layer", waves))))

    def modulation(self, name: str, t: Floats, parts: int) -> list[Floats]:
        return list(np.split(self.linear(name, self.features(t))[:, None], parts, -1))

    def attended(self, img: Floats, txt: Floats, t: Floats, texts: Texts) -> tuple[Floats, Floats]:
        """Image and text streams after the double block's attention."""
        parts, names = [], ("double_blocks.0.txt", "double_blocks.0.img")
        for x, name in zip((txt, img), names, strict=True):
            shift, scale, *_ = self.modulation(f"{name}_mod.lin", t, 6)
            q, k, v = np.split(self.linear(f"{name}_attn.qkv", normed(x) * (1 + scale) + shift), 3, -1)
            norm = f"{name}_attn.norm"
            parts.append((self._norm(q, norm, "query"), self._norm(k, norm, "key"), heads(v)))
        q, k, v = (np.concatenate(pair, 2) for pair in zip(*parts, strict=True))
        turns = angles(texts.positions)
        mixed = attend(rotate(q, turns), rotate(k, turns), v, texts.bias)
        count = txt.shape[1]
        out = []
        for x, name, seen in zip((txt, img), names, (mixed[:, :count], mixed[:, count:]), strict=True):
            gate = self.modulation(f"{name}_mod.lin", t, 6)[2]
            out.append(x + self.linear(f"{name}_attn.proj", seen) * gate)
        return out[1], out[0]

    def looked_up(self, x: Floats, t: Floats, stream: str) -> Floats:
        """One stream ("img" or "txt") after the double block's MLP."""
        name = f"double_blocks.0.{stream}"
        _, _, _, shift, scale, gate = self.modulation(f"{name}_mod.lin", t, 6)
        h = normed(x) * (1 + scale) + shift
        act = silu(self.linear(f"{name}_mlp.gate_proj", h)) * self.linear(f"{name}_mlp.up_proj", h)
        return np.asarray(x + self.linear(f"{name}_mlp.down_proj", act) * gate, np.float32)

    def modulated(self, x: Floats, t: Floats, block: int) -> Floats:
        """What a single block's first layer reads."""
        shift, scale, _ = self.modulation(f"single_blocks.{block}.modulation.lin", t, 3)
        return np.asarray(normed(x) * (1 + scale) + shift, np.float32)

    def single(self, x: Floats, t: Floats, texts: Texts, block: int) -> Floats:
        name = f"single_blocks.{block}"
        gate = self.modulation(f"{name}.modulation.lin", t, 3)[2]
        out = self.linear(f"{name}.linear1", self.modulated(x, t, block))
        q, k, v = np.split(out[..., : 3 * HIDDEN], 3, -1)
        turns = angles(texts.positions)
        q, k = (rotate(self._norm(a, f"{name}.norm", b), turns) for a, b in ((q, "query"), (k, "key")))
        first, second = np.split(out[..., 3 * HIDDEN :], 2, -1)
        mixed = np.concatenate((attend(q, k, heads(v), texts.bias), first * silu(second)), -1)
        return np.asarray(x + self.linear(f"{name}.linear2", mixed) * gate, np.float32)

    def final(self, x: Floats, t: Floats) -> Floats:
        shift, scale = self.modulation("final_layer.adaLN_modulation.1", t, 2)
        return self.linear("final_layer.linear", normed(x) * (1 + scale) + shift)

    def velocity(self, patches: Floats, t: Floats, texts: Texts) -> Floats:
        """The whole: [batch, PLACES, PATCH] of noisy patches to noise - picture."""
        img, txt = self.attended(self.linear("img_in", patches), self.words(texts.ids), t, texts)
        x = np.concatenate((self.looked_up(txt, t, "txt"), self.looked_up(img, t, "img")), 1)
        for block in range(SINGLES):
            x = self.single(x, t, texts, block)
        return self.final(x[:, -PLACES:], t)

    def _norm(self, x: Floats, name: str, what: str) -> Floats:
        return rms(heads(x)) * self.w[f"{name}.{what}_norm.scale"]


def rms(x: Floats) -> Floats:
    return np.asarray(x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + EPSILON), np.float32)


def normed(x: Floats) -> Floats:
    """Layer norm without scale and shift."""
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt(np.mean(np.square(centred), -1, keepdims=True) + EPSILON), np.float32)


def heads(x: Floats) -> Floats:
    """[batch, tokens, HIDDEN] to [batch, heads, tokens, 128]."""
    return x.reshape(*x.shape[:2], HEADS, HEAD).transpose(0, 2, 1, 3)


def attend(q: Floats, k: Floats, v: Floats, bias: Floats) -> Floats:
    """Softmax attention; `bias` [batch, text tokens] is added to the logits of each text token."""
    logits = q @ k.transpose(0, 1, 3, 2) / math.sqrt(HEAD)
    logits[..., : bias.shape[1]] += bias[:, None, None]
    logits -= logits.max(-1, keepdims=True)
    share = np.exp(logits)
    share /= share.sum(-1, keepdims=True)
    return (share @ v).transpose(0, 2, 1, 3).reshape(len(q), q.shape[2], HIDDEN)


def rotate(x: Floats, turns: tuple[Floats, Floats]) -> Floats:
    """Turn neighbouring pairs by the cosines and sines [batch, 1, tokens, 64]."""
    cos, sin = turns
    out = np.empty_like(x)
    out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
    return out


def angles(positions: np.ndarray) -> tuple[Floats, Floats]:
    """Cosines and sines [batch, 1, tokens, 64]: text counts along rows and columns, images have both."""
    batch, count = positions.shape
    parts = [np.zeros((batch, count + PLACES, AXES[0] // 2))]
    for axis, along in zip(AXES[1:], np.indices((SIDE, SIDE)).reshape(2, -1), strict=True):
        place = np.concatenate((positions, np.broadcast_to(along, (batch, PLACES))), 1)
        parts.append(place[..., None] * theta(axis))
    turned = np.concatenate(parts, -1)[:, None]
    return np.cos(turned).astype(np.float32), np.sin(turned).astype(np.float32)


def theta(axis: int = AXES[1]) -> Floats:
    """How far each rotary pair turns a step."""
    return 10_000 ** (-np.arange(0, axis, 2) / axis)
