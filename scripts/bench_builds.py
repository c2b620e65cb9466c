"""The installed engine against a plain `pip install` of it, on a model of Stable Diffusion 1.5's size."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from bench_figures import Run
from compare_engines import build, engine_speed
from rich.console import Console
from synthetic import write_synthetic_sd1

ENGINE = "stable-diffusion-cpp-python"
STEPS = 2
PICTURE_STEPS = 20
"""Of the picture whose time is put together from its parts."""
FEATURES = "from gguf_imagegen.engine.build import describe; print(*describe().features)"
Timing = dict[str, float]
"""Seconds by part, as scripts/engine_speed.py tells them."""


async def builds(run: Run) -> None:
    """Per round each build once; the binding itself would take half of the cores."""
    plain = await asyncio.to_thread(plain_engine, run)
    cores = os.cpu_count() or 1
    ours, theirs, halves = [], [], []
    with tempfile.TemporaryDirectory(prefix="gguf-imagegen-bench-") as folder:
        model = write_synthetic_sd1(Path(folder) / "sd15.safetensors")
        for _ in run.rounds(run.repeats):
            ours.append(await timing(run, "", model, run.settings.threads))
            theirs.append(await timing(run, plain, model, run.settings.threads))
            halves.append(await timing(run, plain, model, max(1, cores // 2)))
    run.tell(f"a step at {run.size}, this build", "s", (each["step"] for each in ours))
    for name, others, fewest in (("plain build", theirs, 1.5), ("binding's own defaults", halves, 3.0)):
        for part, of, target in (
            ("a step", step_of, fewest),
            ("decoding", decode_of, None),
            (f"a picture of {PICTURE_STEPS} steps", picture_of, fewest),
        ):
            run.tell_ratios(f"{part}, {name} ÷ this build", map(of, others), map(of, ours), fewest=target)


def plain_engine(run: Run) -> str:
    """The folder of a build as `pip install` makes it; compiled once, for minutes."""
    features = subprocess.run(
        [sys.executable, "-c", FEATURES], stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    if "LLAMAFILE" not in features.split():
        run.say("the installed engine is a plain build, too; scripts/install makes a fast one")
    return str(build("plain", "", f"{ENGINE}=={version(ENGINE)}", Console(stderr=True)).folder)


async def timing(run: Run, engine: str, model: Path, threads: int) -> Timing:
    arguments = [str(model), "--size", run.size, "--steps", str(STEPS), "--threads", str(threads)]
    return await asyncio.to_thread(engine_speed, engine, *arguments)


def step_of(timing: Timing) -> float:
    return timing["step"]


def decode_of(timing: Timing) -> float:
    return timing["decode"]


def picture_of(timing: Timing) -> float:
    return timing["conditioning"] + PICTURE_STEPS * timing["step"] + timing["decode"]
