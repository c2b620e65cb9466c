"""Stable Diffusion 1.5's UNet and VAE decoder on OpenVINO, their weights random: seconds per run, as JSON.

Runs with the Python of that bench's own environment. `prepare FOLDER` converts diffusers' modules once;
`measure FOLDER SIZE THREADS` compiles them for pictures of SIZE pixels a side and runs them.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino

CONTEXT, TOKENS, LATENT = 768, 77, 4
RUNS = 3


def prepare(folder: Path) -> None:
    """Build the modules from Stable Diffusion 1.5's configuration, convert and save them in F16."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    side = 32
    latent = torch.randn(1, LATENT, side, side)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=CONTEXT, attention_head_dim=8).eval()
    inputs = {
        "sample": latent,
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(1, TOKENS, CONTEXT),
    }
    save(unet, inputs, folder / "unet.xml")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=LATENT,
        sample_size=512,
    ).eval()
    vae.forward = vae.decode
    save(vae, {"z": latent}, folder / "decoder.xml")


def save(module: Any, inputs: dict[str, Any], file: Path) -> None:
    import torch

    with torch.no_grad():
        openvino.save_model(openvino.convert_model(module, example_input=inputs), file)


def measure(folder: Path, size: int, threads: int) -> dict[str, float]:
    """Medians of RUNS after one run that warms up, with the precision that OpenVINO takes on this CPU."""
    side = size // 8
    latent = np.random.default_rng(0).standard_normal((1, LATENT, side, side), np.float32)
    context = np.random.default_rng(1).standard_normal((1, TOKENS, CONTEXT), np.float32)
    step = {"sample": latent, "timestep": np.float32(500), "encoder_hidden_states": context}
    return {
        "step": timed(compiled(folder / "unet.xml", step, threads), step),
        "decode": timed(compiled(folder / "decoder.xml", {"z": latent}, threads), {"z": latent}),
    }


def compiled(file: Path, inputs: dict[str, Any], threads: int) -> Any:
    core = openvino.Core()
    model = core.read_model(file)
    model.reshape({name: list(np.shape(value)) for name, value in inputs.items()})
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    program = core.compile_model(model, "CPU", hints)
    precision = program.get_property("INFERENCE_PRECISION_HINT").to_string()
    print(f"{file.stem}: {precision}", file=sys.stderr)
    return program


def timed(program: Any, inputs: dict[str, Any]) -> float:
    program(inputs)
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        program(inputs)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    match sys.argv[1:]:
        case ["prepare", folder]:
            prepare(Path(folder))
        case ["measure", folder, size, threads]:
            print(json.dumps(measure(Path(folder), int(size), int(threads))))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
