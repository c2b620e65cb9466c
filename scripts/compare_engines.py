"""Build engines for this CPU in several ways, measure them, and install the fastest whose pictures are right.

Called by `scripts/install --compare`. The speed is that of a model of Stable Diffusion 1.5's size at 256x256;
the pictures are those of the embedded model, compared with the plain build's by peak signal-to-noise ratio.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from synthetic import write_synthetic_sd1

ROOT = Path(__file__).resolve().parents[1]
BUILDS = ROOT / "build" / "engines"
TINYBLAS = "-DGGML_LLAMAFILE=ON"
FAST_MATH = "-O3 -march=native -ffast-math -fno-finite-math-only"
CANDIDATES = {
    "plain": "",
    "tinyblas": TINYBLAS,
    "tinyblas-portable": f"{TINYBLAS} -DGGML_NATIVE=OFF",
    "tinyblas-fast-math": f"{TINYBLAS} -DCMAKE_C_FLAGS='{FAST_MATH}' -DCMAKE_CXX_FLAGS='{FAST_MATH}'",
}
"""CMake's flags by name. "portable" is AVX2 code, which is the faster one on some CPUs that have AVX-512."""
LEAST_PSNR = 40.0
SEEDS = 20


@dataclass
class Build:
    name: str
    flags: str
    wheel: Path
    steps: list[float] = field(default_factory=list)
    decodes: list[float] = field(default_factory=list)
    psnr: float = math.inf
    repeatable: bool = True

    @property
    def folder(self) -> Path:
        return BUILDS / self.name

    @property
    def right(self) -> bool:
        return self.repeatable and self.psnr >= LEAST_PSNR

    def run(self, *arguments: str) -> dict[str, float]:
        return engine_speed(str(self.folder), *arguments)


def engine_speed(engine: str, *arguments: str) -> dict[str, float]:
    """Figures of `scripts/engine_speed.py`; `engine` is the folder of a build, empty: the installed one."""
    command = [sys.executable, str(ROOT / "scripts" / "engine_speed.py"), *arguments]
    paths = os.pathsep.join(filter(None, [engine, str(ROOT), os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, check=True, text=True
    )
    return dict(json.loads(ran.stdout))


def build(name: str, flags: str, engine: str, console: Console) -> Build:
    """Compile, unless that was done before."""
    folder = BUILDS / name
    if not list(folder.glob("*.whl")):
        console.print(f"compiling {name} ...")
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run(
            [*pip, "wheel", "--no-cache-dir", "--no-deps", "--wheel-dir", str(folder), engine],
            env={**os.environ, "CMAKE_ARGS": flags},
            check=True,
        )
        (wheel,) = folder.glob("*.whl")
        subprocess.run([*pip, "install", "--no-deps", "--target", str(folder), str(wheel)], check=True)
    (wheel,) = folder.glob("*.whl")
    return Build(name, flags, wheel)


def check_pictures(builds: list[Build], folder: Path) -> None:
    """Twenty pictures of each build against the plain one's, and the first one's against itself."""
    for each in builds:
        for part in ("a", "b"):
            (folder / each.name / part).mkdir(parents=True)
        common = [
            "embedded",
            "--size",
            "128x128",
            "--steps",
            "12",
            "--prompt",
            "a red apple",
            "--repeats",
            "1",
        ]
        each.run(*common, "--pictures", str(folder / each.name / "a"), "--seeds", str(SEEDS))
        each.run(*common, "--pictures", str(folder / each.name / "b"), "--seeds", "1")
        first, again = (folder / each.name / part / "0.png" for part in ("a", "b"))
        each.repeatable = first.read_bytes() == again.read_bytes()
        pairs = [
            [folder / name / "a" / f"{seed}.png" for name in ("plain", each.name)] for seed in range(SEEDS)
        ]
        each.psnr = min(psnr(*pair) for pair in pairs)


def psnr(one: Path, other: Path) -> float:
    """Decibels, infinite for equal pictures."""
    difference = np.asarray(Image.open(one), float) - np.asarray(Image.open(other), float)
    error = float(np.square(difference).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def table(builds: list[Build]) -> Table:
    shown = Table("build", title="Stable Diffusion 1.5's size, 256x256, seconds")
    for heading in ("a step", "plain ÷ it", "decoding", "least PSNR, dB", "repeatable"):
        shown.add_column(heading, justify="right")
    plain = statistics.median(builds[0].steps)
    for each in builds:
        step = statistics.median(each.steps)
        shown.add_row(
            each.name, f"{step:.2f}", f"{plain / step:.2f}", f"{statistics.median(each.decodes):.2f}",
            f"{each.psnr:.1f}", "yes" if each.repeatable else "[red]no",
        )  # fmt: skip
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--engine", required=True, help="requirement of the engine's package")
    parser.add_argument("--choice", type=Path, required=True, help="file that remembers the winner's flags")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=CANDIDATES, help="besides the plain build")
    options = parser.parse_args()
    console = Console(stderr=True)
    chosen = [name for name in CANDIDATES if name == "plain" or name in (options.only or CANDIDATES)]
    builds = [build(name, CANDIDATES[name], options.engine, console) for name in chosen]
    with tempfile.TemporaryDirectory() as folder:
        model = write_synthetic_sd1(Path(folder) / "sd15.safetensors")
        for number in range(options.rounds):
            for each in builds:
                console.print(f"measuring {each.name}, round {number + 1} of {options.rounds} ...")
                figures = each.run(str(model), "--size", "256x256", "--steps", "3")
                each.steps.append(figures["step"])
                each.decodes.append(figures["decode"])
        console.print("comparing pictures ...")
        check_pictures(builds, Path(folder))
    Console().print(table(builds))
    best = min((each for each in builds if each.right), key=lambda each: statistics.median(each.steps))
    install = [sys.executable, "-m", "pip", "--quiet", "install", "--force-reinstall", "--no-deps"]
    subprocess.run([*install, str(best.wheel)], check=True)
    options.choice.write_text(best.flags + "\n")
    console.print(f"{best.name} is installed")


if __name__ == "__main__":
    main()
