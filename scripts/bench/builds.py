"""The installed engine against a plain `pip install` of it, on a model of Stable Diffusion 1.5's size."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from scripts.bench.compare_engines import PICTURE_STEPS, Timing, build, engine_speed
from scripts.bench.engine_speed import OPTIONS
from scripts.bench.figures import Run
from scripts.bench.synthetic import write_synthetic_sd1

STEPS = 2
FEATURES = "from gguf_imagegen.engines.sdcpp.build import describe; print(*describe().features)"


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
        for part, of in PARTS.items():
            target = None if of is decode_of else fewest
            run.tell_ratios(f"{part}, {name} ÷ this build", map(of, others), map(of, ours), fewest=target)


async def options(run: Run) -> None:
    """Each option of the engine that makes no other picture, alone, against none of them."""
    off = [f"--no-{option.replace('_', '-')}" for option in OPTIONS]
    found: dict[str, list[Timing]] = {name: [] for name in ("", *OPTIONS)}
    with tempfile.TemporaryDirectory(prefix="gguf-imagegen-bench-") as folder:
        model = write_synthetic_sd1(Path(folder) / "sd15.safetensors")
        for _ in run.rounds(run.repeats):
            for name, timings in found.items():
                flags = [f"--{name.replace('_', '-')}"] * bool(name)
                timings.append(await timing(run, "", model, run.settings.threads, *off, *flags))
    none = found.pop("")
    for name, timings in found.items():
        parts = {"the load": load_of} if name == "mmap" else PARTS
        for part, of in parts.items():
            run.tell_ratios(f"{part}, {name} ÷ without", map(of, timings), map(of, none))


def plain_engine(run: Run) -> str:
    """The folder of a build as `pip install` makes it; compiled once, for minutes."""
    features = subprocess.run(
        [sys.executable, "-c", FEATURES], stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    if "LLAMAFILE" not in features.split():
        run.say("the installed engine is a plain build, too; scripts/install makes a fast one")
    return str(build("plain", "", Console(stderr=True)).folder)


async def timing(run: Run, engine: str, model: Path, threads: int, *flags: str) -> Timing:
    arguments = [str(model), "--size", run.size, "--steps", str(STEPS), "--threads", str(threads), *flags]
    return await asyncio.to_thread(engine_speed, engine, *arguments)


def load_of(timing: Timing) -> float:
    return timing["load"]


def step_of(timing: Timing) -> float:
    return timing["step"]


def decode_of(timing: Timing) -> float:
    return timing["decode"]


def picture_of(timing: Timing) -> float:
    return timing["conditioning"] + PICTURE_STEPS * timing["step"] + timing["decode"]


PARTS = {"a step": step_of, "decoding": decode_of, f"a picture of {PICTURE_STEPS} steps": picture_of}
"""Of what is measured: name and how to read it."""
