"""Training of the transformer: rectified flow, time-limited, resumable, with an average of the weights."""

from __future__ import annotations

import math
import time
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from . import dataset, muon
from .transformer import Transformer, unpatchify

WARM_UP = 150  # steps
COOL_DOWN = 1.0  # of the time, in which the rates fall to nothing; held at their height, the loss rose
AVERAGE = 0.998  # of the weights, a step
SAVE_EVERY = 120.0  # seconds
CLIP = 1.0


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast() -> torch.autocast:
    """bf16 where the machine computes it faster: any CUDA, CPUs with AVX512-BF16 or AMX."""
    where = device().type
    return torch.autocast(
        where, torch.bfloat16, enabled=where == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())
    )


def loss(model: torch.nn.Module, batch: dataset.Batch, generator: torch.Generator) -> Tensor:
    """Liu et al. 2022 (arXiv 2209.03003): the velocity at times spread like sd.cpp's schedule."""
    size = len(batch.ids)
    even = (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) / size
    t = (dataset.SHIFT * even / (1 + (dataset.SHIFT - 1) * even))[:, None, None]
    noise = torch.randn(batch.patches.shape, generator=generator)
    noisy, where = (1 - t) * batch.patches + t * noise, device()
    with fast():
        said = model(*(x.to(where) for x in (noisy, t[:, 0, 0], batch.ids, batch.positions, batch.bias)))
    return (said.float() - (noise - batch.patches).to(where)).square().mean()


def train_transformer(
    model: Transformer, data: dataset.Pictures, folder: Path, *, minutes: float, size: int, seed: int
) -> Transformer:
    """Train for `minutes` and give the averaged weights; continues from `transformer.pt` in `folder`."""
    checkpoint = folder / "transformer.pt"
    model.to(device())
    average, opts, step, spent = deepcopy(model), muon.optimisers(model), 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device())
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for opt, saved in zip(opts, state["optimisers"], strict=True):
            opt.load_state_dict(saved)
        step, spent = state["step"], state["spent"]
    rates = [[group["lr"] for group in opt.param_groups] for opt in opts] if not step else state["rates"]
    batches = dataset.Batches(data, size, seed + step)
    generator = torch.Generator().manual_seed(seed + step)
    run, began, saved_at, mean = torch.compile(model), time.monotonic(), time.monotonic(), None
    limit = 60 * minutes

    def save() -> None:
        state = {"model": model.state_dict(), "average": average.state_dict(), "step": step, "rates": rates}
        state |= {"optimisers": [opt.state_dict() for opt in opts], "spent": spent + time.monotonic() - began}
        torch.save(state, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)

    first = step
    while (elapsed := time.monotonic() - began) < limit:
        falling = min(1.0, (1 - elapsed / limit) / COOL_DOWN)
        for opt, group_rates in zip(opts, rates, strict=True):
            for group, rate in zip(opt.param_groups, group_rates, strict=True):
                group["lr"] = rate * falling * min(1.0, (step - first + 1) / WARM_UP)
        value = loss(run, batches.draw(), generator)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        step += 1
        with torch.no_grad():
            keep = min(AVERAGE, step / (step + 10))
            for kept, now in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(now, 1 - keep)
        mean = value.item() if mean is None else 0.98 * mean + 0.02 * value.item()
        if step % 50 == 0:
            pace = (time.monotonic() - began) / (step - first)
            print(
                f"transformer step {step}: loss {mean:.4f}, {pace:.2f} s a step, "
                f"{elapsed / 60:.0f} of {minutes:.0f} min",
                flush=True,
            )
        if time.monotonic() - saved_at > SAVE_EVERY:
            save()
            saved_at = time.monotonic()
    save()
    return average.cpu()


@torch.no_grad()
def sample(
    model: Transformer,
    batch: dataset.Batch,
    *,
    steps: int = 20,
    seed: int = 0,
    guidance: float = 1.0,
    empty: dataset.Batch | None = None,
) -> Tensor:
    """Latents [batch, 16, 16, 16] by Euler's method, as sd.cpp does it with its default schedule."""
    x = torch.randn(batch.patches.shape, generator=torch.Generator().manual_seed(seed))
    even = torch.linspace(1, 0, steps + 1)
    times = dataset.SHIFT * even / (1 + (dataset.SHIFT - 1) * even)
    for t, after in pairwise(times):
        now = t.expand(len(x))
        v = model(x, now, batch.ids, batch.positions, batch.bias)
        if empty is not None and not math.isclose(guidance, 1):
            free = model(x, now, empty.ids, empty.positions, empty.bias)
            v = free + guidance * (v - free)
        x = x + (after - t) * v
    return unpatchify(x)
