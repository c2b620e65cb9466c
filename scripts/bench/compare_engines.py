"""Build engines for this CPU in several ways, measure them, and install the fastest whose pictures are right.

Called by `scripts/install --compare`. The speed is that of a picture of 20 steps of a model of Stable
Diffusion 1.5's size at 256x256, with and without flash attention, as one build may win with it and another
without. The pictures are those of the embedded model, compared with the plain build's by peak signal-to-noise
ratio. CMAKE_ARGS of the environment are added to the flags of every build.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

from gguf_imagegen.pictures.nearness import psnr
from scripts.bench.synthetic import write_synthetic_sd1
from scripts.engine import patched

ROOT = Path(__file__).resolve().parents[2]
BUILDS = ROOT / "build" / "engines"
ENGINE = "stable-diffusion-cpp-python"
TINYBLAS = "-DGGML_LLAMAFILE=ON"
FAST_MATH = "-O3 -march=native -ffast-math -fno-finite-math-only"
PLAIN = "plain"
CANDIDATES = {
    PLAIN: "",
    "kernels": TINYBLAS,
    "kernels-portable": f"{TINYBLAS} -DGGML_NATIVE=OFF",
    "kernels-fast-math": f"{TINYBLAS} -DCMAKE_C_FLAGS='{FAST_MATH}' -DCMAKE_CXX_FLAGS='{FAST_MATH}'",
}
"""CMake's flags by name. All but the plain one have our kernels (`scripts.engine.patched`), and tinyBLAS for
what these leave to it. "portable" is AVX2 code, which is the faster one on some CPUs that have AVX-512."""
LEAST_PSNR = 40.0
SEEDS = 20
PICTURE_STEPS = 20
NEAR = 1.1
"""Only what took at most so many times the best picture's time in the first round is measured again."""
Timing = dict[str, float]
"""Seconds by part, as `engine_speed` tells them."""


@dataclass(frozen=True)
class Build:
    name: str
    folder: Path

    @property
    def wheel(self) -> Path:
        (wheel,) = self.folder.glob("*.whl")
        return wheel


@dataclass
class Trial:
    """One build with one setting; `psnr` and `repeatable` are None where the pictures were not looked at."""

    build: Build
    flash_attention: bool
    timings: list[Timing] = field(default_factory=list)
    psnr: float | None = None
    repeatable: bool | None = None

    @property
    def name(self) -> str:
        return self.build.name + ", flash attention" * self.flash_attention

    @property
    def right(self) -> bool:
        return bool(self.repeatable) and self.psnr is not None and self.psnr >= LEAST_PSNR

    @property
    def picture(self) -> float:
        return PICTURE_STEPS * self.median("step") + self.median("decode")

    def median(self, part: str) -> float:
        return statistics.median(each[part] for each in self.timings)

    def run(self, *arguments: str) -> Timing:
        flash = "--flash-attention" if self.flash_attention else "--no-flash-attention"
        return engine_speed(str(self.build.folder), *arguments, flash)


def engine_speed(engine: str, *arguments: str) -> Timing:
    """Figures of the program `engine_speed`; `engine` is the folder of a build, empty: the installed one."""
    command = [sys.executable, "-m", "scripts.bench.engine_speed", *arguments]
    paths = os.pathsep.join(filter(None, [engine, str(ROOT), os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, check=True, text=True
    )
    return dict(json.loads(ran.stdout))


def build(name: str, flags: str, console: Console) -> Build:
    """The engine of the version that is installed with these flags; compiled, unless that was done before."""
    added = b"" if name == PLAIN else patched.contents()
    key = hashlib.sha256(added + flags.encode()).hexdigest()[:8] if added or flags else ""
    folder = BUILDS / "-".join(filter(None, [name, version(ENGINE), key]))
    if not (folder / "stable_diffusion_cpp").is_dir():
        console.print(f"compiling {name} ...")
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        with source(name, console) as made_of:
            subprocess.run(
                [*pip, "wheel", "--no-cache-dir", "--no-deps", "--wheel-dir", str(folder), made_of],
                env={**os.environ, "CMAKE_ARGS": flags},
                check=True,
            )
        (wheel,) = folder.glob("*.whl")
        subprocess.run([*pip, "install", "--no-deps", "--target", str(folder), str(wheel)], check=True)
    return Build(name, folder)


@contextmanager
def source(name: str, console: Console) -> Iterator[str]:
    """What pip is to build: the source with our kernels, or the binding as it is."""
    as_it_is = f"{ENGINE}=={version(ENGINE)}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield as_it_is if name == PLAIN else str(patched.source_tree(Path(folder)))
        except patched.Unpatched as exc:
            console.print(f"{name} is built without our kernels: {exc}")
            yield as_it_is


def measure(trials: list[Trial], rounds: int, model: Path, console: Console) -> None:
    """All of them once, by turns, then those again that are near the best."""
    again = trials
    for number in range(rounds):
        console.print(f"round {number + 1} of {rounds}: {len(again)} measurements")
        for trial in again:
            began = time.monotonic()
            trial.timings.append(trial.run(str(model), "--size", "256x256", "--steps", "3"))
            took = time.monotonic() - began
            console.print(f"  {trial.name}: {trial.picture:.1f} s a picture, measured in {took:.0f} s")
        limit = NEAR * min(trial.picture for trial in trials)
        again = [trial for trial in trials if trial.picture <= limit]


def fastest_right(trials: list[Trial], folder: Path, console: Console) -> Trial | None:
    """The fastest trial with pictures like the plain build's of the same setting, equal at each run."""
    plain = {trial.flash_attention: trial for trial in trials if trial.build.name == PLAIN}
    for trial in sorted(trials, key=lambda each: each.picture):
        console.print(f"comparing the pictures of {trial.name} ...")
        theirs, ours = (drawn(each, folder) for each in (plain[trial.flash_attention], trial))
        trial.psnr = min(likeness(*pair) for pair in zip(theirs, ours, strict=True))
        again = drawn(trial, folder, "again", 1)
        trial.repeatable = again[0].read_bytes() == ours[0].read_bytes()
        if trial.right:
            return trial
    return None


def drawn(trial: Trial, folder: Path, part: str = "first", seeds: int = SEEDS) -> list[Path]:
    """Pictures of a trial, drawn unless they are there."""
    pictures = folder / trial.name.replace(", ", "-") / part
    if not pictures.exists():
        pictures.mkdir(parents=True)
        trial.run(
            "embedded", "--size", "128x128", "--steps", "4", "--prompt", "a red apple", "--repeats", "1",
            "--pictures", str(pictures), "--seeds", str(seeds),
        )  # fmt: skip
    return [pictures / f"{seed}.png" for seed in range(seeds)]


def likeness(one: Path, other: Path) -> float:
    """Decibels, `SAME` for equal pictures."""
    return psnr(*(Image.open(path).convert("RGB").tobytes() for path in (one, other)))


def table(trials: list[Trial]) -> Table:
    shown = Table("build", title="Stable Diffusion 1.5's size, 256x256, seconds")
    for heading in ("rounds", "step", "decoding", "picture", "plain ÷ it", "least PSNR, dB", "repeatable"):
        shown.add_column(heading, justify="right")
    for each in trials:
        shown.add_row(
            each.name, str(len(each.timings)), f"{each.median('step'):.2f}", f"{each.median('decode'):.2f}",
            f"{each.picture:.1f}", f"{trials[0].picture / each.picture:.2f}",
            "" if each.psnr is None else f"{each.psnr:.1f}",
            {None: "", True: "yes", False: "[red]no"}[each.repeatable],
        )  # fmt: skip
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--choice", type=Path, required=True, help="file that remembers the winner's flags")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=CANDIDATES, help="besides the plain build")
    options = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    chosen = [name for name in CANDIDATES if name == PLAIN or name in (options.only or CANDIDATES)]
    own = os.environ.get("CMAKE_ARGS", "")
    builds = [build(name, f"{CANDIDATES[name]} {own}".strip(), console) for name in chosen]
    trials = [Trial(each, flash) for each in builds for flash in (False, True)]
    with tempfile.TemporaryDirectory() as folder:
        model = write_synthetic_sd1(Path(folder) / "sd15.safetensors")
        measure(trials, options.rounds, model, console)
        best = fastest_right(trials, Path(folder), console)
    Console().print(table(trials))
    if best is None:
        sys.exit("no build makes the same picture twice: the engine that was installed stays; see the table")
    install = [sys.executable, "-m", "pip", "--quiet", "install", "--force-reinstall", "--no-deps"]
    subprocess.run([*install, str(best.build.wheel)], check=True)
    options.choice.write_text(CANDIDATES[best.build.name] + "\n")
    setting = "with" if best.flash_attention else "without"
    console.print(
        f"{best.build.name} is installed; it was fastest {setting} flash attention."
        " `gguf-imagegen tune MODEL` measures and keeps what is best for a model;"
        " --flash-attention or --no-flash-attention says it for all.",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
