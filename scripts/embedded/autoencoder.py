"""TAESD's decoder in torch (`tae.hpp`), its training, and the linear encoder written as TAESD's."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import dataset, muon, pictures
from .latents import CHANNELS, Encoder, Floats
from .training import COOL_DOWN, SAVE_EVERY, device, fast

WIDTH = 64
RATE = 5e-4
MATRIX_RATE = 0.006  # at 0.02 the error grew
WARM_UP = 30  # steps
BLUR = 0.04  # noise on the latents, so that the transformer's small errors do not show


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


def pictures_of(data: dataset.Pictures, rng: np.random.Generator, count: int) -> Floats:
    """Random emoji and shapes on random grounds, [count, 128, 128, 3]."""
    found = []
    for _ in range(count):
        front, ground = rng.random((2, 3), np.float32)
        if rng.random() < 0.6:
            ground = pictures.colour(
                "white" if rng.random() < 0.6 else str(rng.choice(list(pictures.COLOURS)))
            )
        if rng.random() < 0.75:
            sprite = data.sprites[rng.integers(len(data.sprites))]
            found.append(sprite[..., :3] + (1 - sprite[..., 3:]) * ground)
            continue
        if rng.random() < 0.7:
            front = pictures.colour(str(rng.choice(list(pictures.COLOURS))))
        x, y, radius = rng.uniform(48, 80), rng.uniform(48, 80), rng.uniform(25, 50)
        mask = pictures.shape_mask(str(rng.choice(pictures.SHAPES)), x, y, radius)[..., None]
        found.append(mask * front + (1 - mask) * ground)
    return np.stack(found).astype(np.float32)


def train(
    decoder: Decoder, data: dataset.Pictures, folder: Path, *, minutes: float, size: int, seed: int
) -> Decoder:
    """Error of colours and of their differences between neighbours; continues from `decoder.pt`."""
    checkpoint, step = folder / "decoder.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device())
        decoder.load_state_dict(state["decoder"])
        step = state["step"]
    decoder.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    kernels = [
        p for name, p in decoder.named_parameters() if p.ndim == 4 and not name.startswith("layers.18")
    ]
    rest = [p for p in decoder.parameters() if all(p is not kernel for kernel in kernels)]
    opts = [muon.Muon(kernels, lr=MATRIX_RATE, decay=0.0), torch.optim.Adam(rest, lr=RATE, betas=(0.9, 0.98))]
    rates = [opt.param_groups[0]["lr"] for opt in opts]
    rng, generator = np.random.default_rng(seed + step), torch.Generator().manual_seed(seed + step)
    began, saved_at, first, limit, mean = time.monotonic(), time.monotonic(), step, 60 * minutes, None

    def save() -> None:
        torch.save({"decoder": decoder.state_dict(), "step": step}, checkpoint)

    while (elapsed := time.monotonic() - began) < limit:
        falling = min(1.0, (1 - elapsed / limit) / COOL_DOWN)
        for opt, rate in zip(opts, rates, strict=True):
            opt.param_groups[0]["lr"] = rate * falling * min(1.0, (step - first + 1) / WARM_UP)
        pixels = pictures_of(data, rng, size)
        colours = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device())
        latents = torch.from_numpy(np.stack([data.encoder(picture) for picture in pixels]))
        latents = latents + BLUR * torch.randn(latents.shape, generator=generator)
        with fast():
            said = decoder(latents.to(device(), memory_format=torch.channels_last))
        off = said.float() - colours
        edges = off.diff(dim=-1).abs().mean() + off.diff(dim=-2).abs().mean()
        value = off.abs().mean() + 0.5 * edges + 3 * off.square().mean()
        value.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        step += 1
        error = off.detach().square().mean().item()
        mean = error if mean is None else 0.98 * mean + 0.02 * error
        if step % 50 == 0:
            pace = (time.monotonic() - began) / (step - first)
            decibels = -10 * np.log10(mean)
            print(
                f"decoder step {step}: {decibels:.1f} dB, {pace:.2f} s a step, "
                f"{elapsed / 60:.0f} of {minutes:.0f} min",
                flush=True,
            )
        if time.monotonic() - saved_at > SAVE_EVERY:
            save()
            saved_at = time.monotonic()
    save()
    return decoder.cpu()


def encoder_tensors(encoder: Encoder) -> dict[str, np.ndarray]:
    """The linear encoder as TAESD's layers: two gather 2x2 pixels each, one projects, the last subtracts.

    Components come out twice, as they are and negated, since the ReLUs between keep only what is positive.
    """
    tensors: dict[str, np.ndarray] = {}

    def conv(name: str, kernel: np.ndarray, bias: np.ndarray | None) -> None:
        tensors[f"{name}.weight"] = kernel.astype(np.float32)
        if bias is not None:
            tensors[f"{name}.bias"] = bias.astype(np.float32)

    first = np.zeros((WIDTH, 3, 3, 3))
    first[:3, :, 1, 1] = np.eye(3)
    conv("0", first, np.zeros(WIDTH))
    for block in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        for part in (0, 2, 4):
            conv(f"{block}.conv.{part}", np.zeros((WIDTH, WIDTH, 3, 3)), np.zeros(WIDTH))
    held = [(0, 0, colour) for colour in range(3)]  # the row, column and colour of the block in each channel
    for layer, reach in ((2, 1), (6, 2)):
        kernel = np.zeros((WIDTH, WIDTH, 3, 3))
        after: list[tuple[int, int, int]] = []
        for dy, dx in np.ndindex(2, 2):
            for channel, (row, column, colour) in enumerate(held):
                kernel[len(after), channel, 1 + dy, 1 + dx] = 1
                after.append((row + dy * reach, column + dx * reach, colour))
        held = after
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
