"""Training of the decoder, the one part of the model that is not worked out. Needs torch.

It learns to undo the encoder on glyphs of all sizes, in the colours and on the grounds that the transformer
can make, with a little noise on the latents so that the transformer's small errors do not show.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import muon, pictures
from .autoencoder import DECODER, WIDTH
from .latents import CHANNELS, FREE, Encoder
from .pictures import Floats

RATE, MATRIX_RATE = 3e-4, 0.003
WARM_UP = 20  # steps
NOISE = 0.12  # on the latents, at most
CROP = 64  # pixels


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ModuleDict({i: nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for i in ("0", "2", "4")})
        with torch.no_grad():
            self.conv["4"].weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv["2"](F.relu(self.conv["0"](x))))
        return F.relu(x + self.conv["4"](h))


class Decoder(nn.Module):
    """Latents [batch, 16, h, w] to colours [batch, 3, 8h, 8w] in about [0, 1]; numbered as in sd.cpp."""

    def __init__(self) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {"0": nn.Conv2d(CHANNELS, WIDTH, 3, padding=1)}
        for stage in range(3):
            first = 2 + 5 * stage
            layers |= {str(first + i): Block() for i in range(3)}
            layers[str(first + 4)] = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        layers["17"] = Block()
        layers["18"] = nn.Conv2d(WIDTH, 3, 3, padding=1)
        self.layers = nn.ModuleDict(layers)
        nn.init.constant_(layers["18"].bias, 0.5)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.layers["0"](3 * torch.tanh(z / 3)))
        for stage in range(3):
            first = 2 + 5 * stage
            for i in range(3):
                x = self.layers[str(first + i)](x)
            x = self.layers[str(first + 4)](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        out: Tensor = self.layers["18"](self.layers["17"](x))
        return out

    def tensors(self) -> dict[str, Floats]:
        return {
            DECODER + name.removeprefix("layers."): value.detach().numpy()
            for name, value in self.state_dict().items()
        }

    def load(self, tensors: Mapping[str, Floats]) -> None:
        mine = {name: value for name, value in tensors.items() if name.startswith(DECODER)}
        self.load_state_dict(
            {
                f"layers.{name.removeprefix(DECODER)}": torch.from_numpy(value.copy())
                for name, value in mine.items()
            }
        )


def turned(tensors: Mapping[str, Floats], old: Encoder, new: Encoder) -> dict[str, Floats]:
    """The decoder of one encoder as a start for another's: its first layer reads the new latents as
    the old.
    """
    back = np.linalg.pinv(new.weight[:FREE])  # [192, 15]
    turn = np.zeros((CHANNELS, CHANNELS))
    turn[:, :FREE] = old.weight @ back
    offset = old.bias - turn @ new.bias
    first = tensors[f"{DECODER}0.weight"]
    bias = tensors[f"{DECODER}0.bias"] + np.einsum("ocyx,c->o", first, offset)
    kernel = np.einsum("ocyx,cd->odyx", first, turn)
    return {
        **tensors,
        f"{DECODER}0.weight": kernel.astype(np.float32),
        f"{DECODER}0.bias": bias.astype(np.float32),
    }


class Examples:
    """Crops of random pictures like those that the transformer makes."""

    def __init__(self, characters: list[str], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.characters = characters

    def draw(self, count: int) -> Floats:
        """[count, CROP, CROP, 3]."""
        return np.stack([self._crop(self._picture()) for _ in range(count)])

    def _picture(self) -> Floats:
        rng = self.rng
        sprite, white = self._sprite(), rng.random() < 0.4
        ground = np.ones(3) if white else self._colour() if rng.random() < 0.4 else 1 - 0.3 * rng.random(3)
        return pictures.on(sprite, ground.astype(np.float32))

    def _sprite(self) -> Floats:
        rng = self.rng
        if rng.random() < 0.2:
            x, y = rng.uniform(40, 88, 2)
            mask = pictures.shape_mask(str(rng.choice(pictures.SHAPES)), x, y, rng.uniform(18, 50))[..., None]
            return np.concatenate((mask * self._colour(), mask), -1).astype(np.float32)
        reach = int(rng.choice((pictures.REACH, pictures.REACH, 120, 52)))
        sprite = pictures.glyph(str(rng.choice(self.characters)), reach)
        if rng.random() < 0.2:
            light = sprite[..., :3] @ np.array([0.3, 0.59, 0.11], np.float32)
            tinted = (light[..., None] + 0.35 * sprite[..., 3:]) * self._colour()
            sprite = np.concatenate((tinted.clip(0, sprite[..., 3:]), sprite[..., 3:]), -1).astype(np.float32)
        return sprite[:, ::-1] if rng.random() < 0.5 else sprite

    def _colour(self) -> Floats:
        named = self.rng.random() < 0.6
        value = pictures.colour(str(self.rng.choice(list(pictures.COLOURS)))) if named else self.rng.random(3)
        return np.asarray(value, np.float32)

    def _crop(self, picture: Floats) -> Floats:
        top, left = (8 * self.rng.integers(0, (pictures.SIZE - CROP) // 8 + 1, 2)).tolist()
        return picture[top : top + CROP, left : left + CROP]


def train(decoder: Decoder, encoder: Encoder, examples: Examples, *, minutes: float, size: int) -> None:
    """Error of colours and of their differences between neighbours; rates fall to nothing at the end."""
    decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kernels = [
        p for name, p in decoder.named_parameters() if p.ndim == 4 and not name.startswith("layers.18")
    ]
    rest = [p for p in decoder.parameters() if all(p is not kernel for kernel in kernels)]
    opts = [muon.Muon(kernels, lr=MATRIX_RATE, decay=0.0), torch.optim.Adam(rest, lr=RATE, betas=(0.9, 0.98))]
    rates = [opt.param_groups[0]["lr"] for opt in opts]
    noise = torch.Generator().manual_seed(0)
    began, mean = time.monotonic(), 0.0
    for step in itertools.count():
        spent = (time.monotonic() - began) / (60 * minutes)
        if spent >= 1:
            return
        for opt, rate in zip(opts, rates, strict=True):
            opt.param_groups[0]["lr"] = rate * min(1, (step + 1) / WARM_UP) * (1 - spent)
        colours = examples.draw(size)
        latents = torch.from_numpy(np.stack([encoder(picture) for picture in colours]))
        latents += (
            NOISE * torch.rand(size, 1, 1, 1, generator=noise) * torch.randn(latents.shape, generator=noise)
        )
        latents[:, FREE] = 0
        off = decoder(latents) - torch.from_numpy(colours).permute(0, 3, 1, 2)
        edges = off.diff(dim=-1).abs().mean() + off.diff(dim=-2).abs().mean()
        (off.abs().mean() + 0.5 * edges + 3 * off.square().mean()).backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        error = off.detach().square().mean().item()
        mean = error if step == 0 else 0.97 * mean + 0.03 * error
        if step % 50 == 0:
            print(f"step {step}: {-10 * np.log10(mean):.1f} dB, {time.monotonic() - began:.0f} s", flush=True)
