"""Stable Diffusion 1.5's UNet and VAE decoder on OpenVINO, their weights random: seconds per run, as JSON.

Runs with the Python of that bench's own environment. `prepare FOLDER` converts diffusers' modules
once, and `prepare-sdxs FOLDER` those of SDXS; `measure FOLDER SIZE THREADS [PRECISION]` compiles them for
pictures of SIZE pixels a side and runs them, in the precision that OpenVINO takes on this CPU unless one is
given (f32).
`NAME_cpu` are the processor's seconds of all threads, beside those of the clock.
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


def prepare_sdxs(folder: Path) -> None:
    """SDXS-512's UNet of one block a level, and the tiny decoder."""
    import torch
    from diffusers import AutoencoderTiny, UNet2DConditionModel

    torch.manual_seed(0)
    latent = torch.randn(1, LATENT, 64, 64)
    attends = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", attends[0], attends[0]),
        mid_block_type=None,
        up_block_types=(attends[1], attends[1], "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=CONTEXT,
        attention_head_dim=8,
    ).eval()
    inputs = {
        "sample": latent,
        "timestep": torch.tensor(999.0),
        "encoder_hidden_states": torch.randn(1, TOKENS, CONTEXT),
    }
    save(unet, inputs, folder / "unet.xml")
    save(AutoencoderTiny().eval().decoder, {"x": latent}, folder / "decoder.xml")


def save(module: Any, inputs: dict[str, Any], file: Path) -> None:
    import torch

    with torch.no_grad():
        openvino.save_model(openvino.convert_model(module, example_input=inputs), file)


def measure(folder: Path, size: int, threads: int, precision: str = "") -> dict[str, float]:
    """Medians of RUNS after one run that warms up."""
    side = size // 8
    latent = np.random.default_rng(0).standard_normal((1, LATENT, side, side), np.float32)
    context = np.random.default_rng(1).standard_normal((1, TOKENS, CONTEXT), np.float32)
    step = {"sample": latent, "timestep": np.float32(500), "encoder_hidden_states": context}
    found = {}
    for part, file, inputs in (("step", "unet.xml", step), ("decode", "decoder.xml", {0: latent})):
        program = compiled(folder / file, inputs, threads, precision)
        found[part], found[f"{part}_cpu"] = timed(program, inputs)
    return found


def compiled(file: Path, inputs: dict[Any, Any], threads: int, precision: str) -> Any:
    core = openvino.Core()
    model = core.read_model(file)
    model.reshape({name: list(np.shape(value)) for name, value in inputs.items()})
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if precision:
        hints["INFERENCE_PRECISION_HINT"] = precision
    program = core.compile_model(model, "CPU", hints)
    taken = program.get_property("INFERENCE_PRECISION_HINT").to_string()
    print(f"{file.stem}: {taken}", file=sys.stderr)
    return program


def timed(program: Any, inputs: dict[Any, Any]) -> tuple[float, float]:
    """By the clock, and of the processor."""
    program(inputs)
    clock, processor = [], []
    for _ in range(RUNS):
        began, worked = time.perf_counter(), time.process_time()
        program(inputs)
        clock.append(time.perf_counter() - began)
        processor.append(time.process_time() - worked)
    return statistics.median(clock), statistics.median(processor)


def main() -> None:
    match sys.argv[1:]:
        case ["prepare", folder]:
            prepare(Path(folder))
        case ["prepare-sdxs", folder]:
            prepare_sdxs(Path(folder))
        case ["measure", folder, size, threads, *precision]:
            print(json.dumps(measure(Path(folder), int(size), int(threads), *precision)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
