"""How like the pictures of engines are at Stable Diffusion 1.5's size: PSNR against the first engine's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.bench.compare_engines import likeness
from scripts.bench.contest.contenders import Contender, Setting


def likenesses(
    engines: list[Contender], chosen: list[Setting], seeds: int, console: Console
) -> list[dict[str, Any]]:
    """Decibels by seed, of the builds of sd.cpp; OpenVINO's modules have other weights."""
    builds = [each for each in engines if each.what not in ("openvino", "sd-server")]
    found = []
    for setting in chosen:
        if setting.is_block:
            continue
        with tempfile.TemporaryDirectory(prefix="gguf-imagegen-bench-") as folder:
            first, *others = [
                drawn(each, setting, Path(folder) / str(n), seeds) for n, each in enumerate(builds)
            ]
            for engine, pictures in zip(builds[1:], others, strict=True):
                psnr = [likeness(*pair) for pair in zip(first, pictures, strict=True)]
                found.append(
                    {"engine": engine.name, "against": builds[0].name, **vars(setting), "psnr": psnr}
                )
                console.print(f"{engine.name}: {setting.kind}: least {min(psnr):.1f} dB of {seeds}")
    return found


def drawn(engine: Contender, setting: Setting, folder: Path, seeds: int) -> list[Path]:
    folder.mkdir()
    engine.times(setting, "--pictures", str(folder), "--seeds", str(seeds))
    return [folder / f"{seed}.png" for seed in range(seeds)]
