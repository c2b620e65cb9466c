"""The Ovis-Image transformer (Flux with gated MLPs) in torch, with sd.cpp's tensor names (`flux.hpp`).

Sizes are free but for heads of 128. The text encoder is a table of token vectors and a norm
(Qwen3 of no layers).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 128
AXES = (16, 56, 56)  # rotary dimensions of index, row and column
CONTEXT = 64  # width of a token's vector
PATCH = 64  # 2x2 latents of 16 channels
EPSILON = 1e-6


class Scale(nn.Module):
    """RMS norm with a learned scale."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.scale.shape, self.scale, EPSILON)


class QKNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_norm, self.key_norm = Scale(HEAD), Scale(HEAD)


class Modulation(nn.Module):
    """Shifts, scales and gates of a block, from the time."""

    def __init__(self, hidden: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.lin = nn.Linear(hidden, parts * hidden)
        nn.init.zeros_(self.lin.weight)
        nn.init.zeros_(self.lin.bias)
        with torch.no_grad():
            self.lin.bias.view(parts, hidden)[2::3] = 0.5  # gates half open

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(time))[:, None].chunk(self.parts, -1)


class Attention(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.norm = QKNorm()
        self.proj = nn.Linear(hidden, hidden)


class MLP(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, 4 * hidden)
        self.up_proj = nn.Linear(hidden, 4 * hidden)
        self.down_proj = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift


def heads(x: Tensor) -> Tensor:
    """[batch, tokens, hidden] to [batch, heads, tokens, 128]."""
    return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)


def rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Turn neighbouring pairs by the cosines and sines [batch, 1, tokens, 64]."""
    cos, sin = turns
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(-2)


class DoubleBlock(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.img_mod, self.txt_mod = Modulation(hidden, 6), Modulation(hidden, 6)
        self.img_attn, self.txt_attn = Attention(hidden), Attention(hidden)
        self.img_mlp, self.txt_mlp = MLP(hidden), MLP(hidden)

    def forward(
        self, img: Tensor, txt: Tensor, time: Tensor, turns: tuple[Tensor, Tensor], bias: Tensor
    ) -> Tensor:
        streams = [
            (txt, self.txt_mod(time), self.txt_attn, self.txt_mlp),
            (img, self.img_mod(time), self.img_attn, self.img_mlp),
        ]
        parts = []
        for x, mod, attention, _ in streams:
            q, k, v = (heads(part) for part in attention.qkv(modulate(x, mod[0], mod[1])).chunk(3, -1))
            parts.append((attention.norm.query_norm(q), attention.norm.key_norm(k), v))
        q, k, v = (torch.cat(pair, 2) for pair in zip(*parts, strict=True))
        mixed = attend(rotate(q, turns), rotate(k, turns), v, bias).split([txt.shape[1], img.shape[1]], 1)
        out = []
        for (x, mod, attention, mlp), seen in zip(streams, mixed, strict=True):
            y = x + attention.proj(seen) * mod[2]
            out.append(y + mlp(modulate(y, mod[3], mod[4])) * mod[5])
        return torch.cat(out, 1)


class SingleBlock(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.modulation = Modulation(hidden, 3)
        self.linear1 = nn.Linear(hidden, 11 * hidden)
        self.norm = QKNorm()
        self.linear2 = nn.Linear(5 * hidden, hidden)

    def forward(
        self, x: Tensor, time: Tensor, turns: tuple[Tensor, Tensor], bias: Tensor, skip: int = 0
    ) -> Tensor:
        """With `skip`, only the tokens after the first `skip` are made (the last block's text is unread)."""
        shift, scale, gate = self.modulation(time)
        h, modulated = self.hidden, modulate(x, shift, scale)
        weight, offset = self.linear1.weight, self.linear1.bias
        rest = modulated[:, skip:]
        q = heads(F.linear(rest, weight[:h], offset[:h]))
        k, v = (
            heads(part) for part in F.linear(modulated, weight[h : 3 * h], offset[h : 3 * h]).chunk(2, -1)
        )
        first, second = F.linear(rest, weight[3 * h :], offset[3 * h :]).chunk(2, -1)
        q = rotate(self.norm.query_norm(q), (turns[0][:, :, skip:], turns[1][:, :, skip:]))
        k = rotate(self.norm.key_norm(k), turns)
        mixed = torch.cat((attend(q, k, v, bias), first * F.silu(second)), -1)
        return x[:, skip:] + self.linear2(mixed) * gate


class TimeIn(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(256, hidden), nn.Linear(hidden, hidden)

    def forward(self, time: Tensor) -> Tensor:
        angles = (
            1000 * time[:, None] * torch.exp(-math.log(10_000) * torch.arange(128, device=time.device) / 128)
        )
        return self.out_layer(F.silu(self.in_layer(torch.cat((angles.cos(), angles.sin()), -1))))


class FinalLayer(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, PATCH)
        self.adaLN_modulation = nn.ModuleDict({"1": nn.Linear(hidden, 2 * hidden)})
        for layer in (self.linear, self.adaLN_modulation["1"]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation["1"](F.silu(time))[:, None].chunk(2, -1)
        return self.linear(modulate(x, shift, scale))


class Transformer(nn.Module):
    """Predicts noise - picture. `vocabulary` is the number of tokens in use, which are numbered afresh."""

    def __init__(self, vocabulary: int, hidden: int = 256, single_blocks: int = 3) -> None:
        super().__init__()
        self.hidden = hidden
        self.embed_tokens = nn.Embedding(vocabulary, CONTEXT)
        self.text_norm = Scale(CONTEXT)
        self.img_in = nn.Linear(PATCH, hidden)
        self.time_in = TimeIn(hidden)
        self.txt_norm = Scale(CONTEXT)
        self.txt_in = nn.Linear(CONTEXT, hidden)
        self.double_blocks = nn.ModuleList([DoubleBlock(hidden)])
        self.single_blocks = nn.ModuleList([SingleBlock(hidden) for _ in range(single_blocks)])
        self.final_layer = FinalLayer(hidden)

    def forward(self, patches: Tensor, time: Tensor, ids: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        """`patches` [batch, rows*columns, 64] of a square; `ids`, `positions`, `bias` [batch, text tokens].

        `bias` is added to the attention to each text token: the logarithm of how many tokens it stands for.
        """
        txt = self.txt_in(self.txt_norm(self.text_norm(self.embed_tokens(ids))))
        img, vector, skip = self.img_in(patches), self.time_in(time), ids.shape[1]
        turns = angles(positions, math.isqrt(patches.shape[1]))
        everywhere = F.pad(bias, (0, patches.shape[1]))[:, None, None, :]
        x = self.double_blocks[0](img, txt, vector, turns, everywhere)
        for block in self.single_blocks[:-1]:
            x = block(x, vector, turns, everywhere)
        return self.final_layer(self.single_blocks[-1](x, vector, turns, everywhere, skip), vector)


def angles(positions: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [batch, 1, tokens, 64]: text counts along rows and columns, images have both."""
    place = torch.arange(side, device=positions.device)
    rows, columns = place.repeat_interleave(side), place.repeat(side)
    batch = positions.shape[0]
    parts = [torch.zeros(batch, positions.shape[1] + side * side, AXES[0] // 2, device=positions.device)]
    for axis, along in zip(AXES[1:], (rows, columns), strict=True):
        place = torch.cat((positions, along.expand(batch, -1)), 1).float()
        parts.append(place[..., None] * 10_000 ** (-torch.arange(0, axis, 2, device=place.device) / axis))
    turned = torch.cat(parts, -1)[:, None]
    return turned.cos(), turned.sin()


def patchify(latents: Tensor) -> Tensor:
    """[batch, 16, 2*rows, 2*columns] to [batch, rows*columns, 64], channel first (`common_dit.hpp`)."""
    batch, channels, height, width = latents.shape
    cut = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(batch, height * width // 4, 4 * channels)


def unpatchify(patches: Tensor) -> Tensor:
    batch, count, size = patches.shape
    side = math.isqrt(count)
    grid = patches.view(batch, side, side, size // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(batch, size // 4, 2 * side, 2 * side)
