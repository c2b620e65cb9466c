"""sd.cpp against OpenVINO's runtime, on models of Stable Diffusion 1.5's size, one UNet run a step."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.bench.builds import decode_of, plain_engine, step_of, timing
from scripts.bench.compare_engines import PICTURE_STEPS, Timing
from scripts.bench.figures import CACHE, Run, Teller, Unavailable
from scripts.bench.synthetic import write_synthetic_sd1

PROGRAM = Path(__file__).with_name("openvino_model.py")
ENVIRONMENT = CACHE / "openvino"
MODELS = CACHE / "openvino-models"
SDXS = CACHE / "openvino-sdxs"
PACKAGES = ("torch==2.13.0+cpu", "openvino>=2026.4", "diffusers>=0.42")
"""torch only makes the modules that are converted; PyPI's own wheel of it would bring gigabytes of CUDA."""


async def openvino(run: Run) -> None:
    """A step of the UNet and a decoding, by turns: this build, the plain one, OpenVINO."""
    await asyncio.to_thread(prepare, run)
    plain = await asyncio.to_thread(plain_engine, run)
    with tempfile.TemporaryDirectory(prefix="gguf-imagegen-bench-") as folder:
        model = write_synthetic_sd1(Path(folder) / "sd15.safetensors")
        ours, theirs, others = [], [], []
        for _ in run.rounds(run.repeats):
            ours.append(await timing(run, "", model, run.settings.threads))
            theirs.append(await timing(run, plain, model, run.settings.threads))
            others.append(await asyncio.to_thread(openvino_timing, run))
    image = f"an image of {PICTURE_STEPS} steps, its prompt not counted"
    for part, of in (("a step", step_of), ("decoding", decode_of), (image, image_of)):
        run.tell(f"{part} at {run.size}, this build", "s", map(of, ours))
        run.tell(f"{part} at {run.size}, OpenVINO", "s", map(of, others))
        run.tell_ratios(f"{part}, this build ÷ OpenVINO", map(of, ours), map(of, others))
        run.tell_ratios(f"{part}, plain build ÷ OpenVINO", map(of, theirs), map(of, others))


HAS_PACKAGES = "from importlib.metadata import version as v; v('openvino'), v('diffusers'), v('torch')"
"""Importing them takes long on a busy machine."""


def image_of(timing: Timing) -> float:
    return PICTURE_STEPS * timing["step"] + timing["decode"]


def openvino_timing(run: Run) -> Timing:
    side = run.size.split("x")[0]
    command = ["measure", str(MODELS), side, str(run.settings.threads)]
    ran = subprocess.run(
        [str(python()), str(PROGRAM), *command], stdout=subprocess.PIPE, check=True, text=True
    )
    return dict(json.loads(ran.stdout))


def python() -> Path:
    return ENVIRONMENT / "bin" / "python"


def prepare(run: Teller) -> None:
    """An environment with the packages and the converted models, unless they are there."""
    if not python().exists():
        call("making an environment", [sys.executable, "-m", "venv", str(ENVIRONMENT)])
    try:
        call("looking for the packages", [str(python()), "-c", HAS_PACKAGES])
    except Unavailable:
        run.say("installing OpenVINO, diffusers and torch (1.3 GB) ...")
        pip = [str(python()), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        call(
            f"installing {', '.join(PACKAGES)} (wheels of torch for the CPU: PIP_EXTRA_INDEX_URL)",
            [*pip, *PACKAGES],
        )
    for word, folder in (("prepare", MODELS), ("prepare-sdxs", SDXS)):
        if not folder.exists():
            run.say(f"converting the models of {folder.name} ...")
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            call("converting the models", [str(python()), str(PROGRAM), word, str(unfinished)])
            unfinished.rename(folder)


def call(what: str, command: list[str]) -> None:
    ran = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if ran.returncode:
        last = (ran.stderr.strip() or f"status {ran.returncode}").splitlines()[-1]
        raise Unavailable(f"{what} failed: {last}")
