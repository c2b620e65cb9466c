#!/usr/bin/env python3
"""Measure the model that ships with the package, through the real engine, and write its grid of pictures.

    pip install -e '.[train]' && apt install fonts-noto-color-emoji npm
    scripts/evaluate_embedded_model.py

Prints the figures of the model card as JSON. Every picture has a seed that follows from its prompt's number.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.catalog.entry import PACKAGED
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.pool.lane import Lane
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.events import Loaded, Made
from scripts.training import autoencoder, export, measure, pictures, prompts, vocabulary

ROOT = Path(__file__).resolve().parents[1]
STEP = 10  # from one seed to the next
SEEDS = 4  # of one prompt
GRID = (
    "cat", "dog", "apple", "rocket", "pizza", "car", "house", "sun", "penguin", "robot", "fish", "guitar",
    "crying face", "cool face", "castle", "unicorn", "a red circle on a blue background",
    "a green star on a yellow background", "a pink heart on a black background",
    "a yellow ring on a purple background",
    "a white circle", "a blue car", "a green apple", "a cat on a blue background",
)  # fmt: skip
COLUMNS = 8


class Painter:
    """The embedded model in the engine of the package."""

    def __init__(self, threads: int) -> None:
        self.settings = Settings(threads=threads)
        self.catalog, name = choose_models(self.settings)
        self.entry = self.catalog.get(name)
        self.lane = Lane(self.catalog, self.settings, EngineProcess, Device(threads=threads))
        self.loaded = 0.0
        self.seconds: list[float] = []

    async def paint(self, prompt: str, seed: int, **fields: Any) -> Image.Image:
        request, warnings = parse_request({"prompt": prompt, "seed": seed, **fields})
        job = plan(request, self.entry, self.settings, "edit" if request.image else "generation", warnings)
        began = time.perf_counter()
        async with self.lane.loaded(self.entry, self._note) as model:
            async for event in model.engine.run(job.spec):
                if isinstance(event, Made):
                    made = event.artifact
                    picture = Image.frombytes("RGB", (made.width, made.height), made.data)
        self.seconds.append(time.perf_counter() - began)
        return picture

    def _note(self, event: object) -> None:
        if isinstance(event, Loaded):
            self.loaded = event.seconds


async def shapes(painter: Painter, count: int, fields: dict[str, Any]) -> dict[str, Any]:
    """Share of prompts with the right colour, background, shape, and all three; a third are held out."""
    chosen = prompts.some_shapes(count, count * 3 // 10)
    rows = []
    for number, prompt in enumerate(track(chosen, "shapes")):
        found = measure.look(await painter.paint(prompt.text, number * STEP, **fields))
        rows.append(
            (
                found.colour == prompt.colour,
                found.background == prompt.background,
                found.shape == prompt.shape,
            )
        )
        if not all(rows[-1]):
            print(f"{prompt.text}: {found}", file=sys.stderr)
    right = np.array(rows)
    every_one = np.asarray(right.all(1))
    names = ("colour", "background", "shape")
    return {name: share(right[:, i]) for i, name in enumerate(names)} | {
        "all three": share(every_one),
        "all three, held out": share(every_one[: count * 3 // 10]),
        "prompts": len(chosen),
    }


async def named(painter: Painter, names: Iterable[str], fields: dict[str, Any]) -> float:
    """Share of names whose picture is nearer to a picture of that name than to any other."""
    album = measure.Album()
    right = []
    for number, name in enumerate(track(list(names), "names")):
        picture = await painter.paint(name, number * STEP, **fields)
        right.append(shows(album, picture, name))
        if not right[-1]:
            print(f"{name}: {album.names_of(picture)}", file=sys.stderr)
    return share(right)


def shows(album: measure.Album, picture: Image.Image, name: str) -> bool:
    if name in pictures.SHAPES:
        return measure.look(picture).shape == name
    return name in album.names_of(picture)


async def seeds(painter: Painter, names: Iterable[str], fields: dict[str, Any]) -> dict[str, float]:
    """Several seeds of one prompt: how many are right, and how far the two most alike are apart (of 255)."""
    album = measure.Album()
    right, apart = [], []
    for name in track(list(names), "seeds"):
        made = [await painter.paint(name, seed, **fields) for seed in range(SEEDS)]
        right += [shows(album, picture, name) for picture in made]
        values = [np.asarray(picture, np.float32) for picture in made]
        apart.append(min(np.abs(a - b).mean() for n, a in enumerate(values) for b in values[:n]))
    return {
        "right": share(right),
        "apart, median": share(np.median(apart)),
        "apart, least": share(min(apart)),
    }


def round_trip() -> float:
    """Mean PSNR of all glyphs, on white or a colour, that go through the autoencoder."""
    tensors = export.read(PACKAGED / "embedded-tae.gguf")
    encoder = autoencoder.read_encoder(tensors)
    values: list[float] = []
    grounds: list[pictures.Floats | float] = [1.0, *map(pictures.colour, pictures.COLOURS)]
    for number, sprite in enumerate(track(measure.sprites(), "round trip")):
        picture = pictures.on(sprite, grounds[number % len(grounds)])
        values.append(measure.psnr(autoencoder.decode(tensors, encoder(picture)), picture))
    return round(float(np.mean(values)), 2)


async def grid(painter: Painter, file: Path) -> None:
    """The pictures of the README."""
    gap = 4
    rows = -(-len(GRID) // COLUMNS)
    page = Image.new("RGB", ((128 + gap) * COLUMNS - gap, (128 + gap) * rows - gap), "white")
    for number, prompt in enumerate(GRID):
        place = ((number % COLUMNS) * (128 + gap), (number // COLUMNS) * (128 + gap))
        page.paste(await painter.paint(prompt, number), place)
    file.parent.mkdir(parents=True, exist_ok=True)
    page.save(file, optimize=True)


def share(right: Any) -> float:
    return round(float(np.mean(right)), 3)


async def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    painter = Painter(options.threads)
    try:
        await grid(painter, options.grid)
        if options.grid_only:
            return {}
        fields = {"cfg_scale": options.cfg_scale} if options.cfg_scale else {}
        every = [names[0] for _, names in vocabulary.entries()]
        some = [every[i] for i in np.random.default_rng(0).choice(len(every), options.names, replace=False)]
        return {
            "shapes": await shapes(painter, options.shapes, fields),
            "everyday names": await named(painter, prompts.EVERYDAY, fields),
            f"{options.names} names": await named(painter, some, fields),
            f"{SEEDS} seeds": await seeds(painter, some[: options.names // 10], fields),
            "seconds a picture": round(float(np.median(painter.seconds)), 2),
            "seconds to load": round(painter.loaded, 2),
            "round trip PSNR, dB": round_trip(),
        }
    finally:
        await painter.lane.close("done")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=int, default=200, help="how many prompts of shapes")
    parser.add_argument("--names", type=int, default=200, help="how many of all names")
    parser.add_argument("--grid", type=Path, default=ROOT / "docs" / "embedded.png", help="the grid to write")
    parser.add_argument("--grid-only", action="store_true", help="write the grid, measure nothing")
    parser.add_argument("--cfg-scale", type=float, help="instead of the model's default")
    parser.add_argument("--threads", type=int, default=usable_cores())
    json.dump(asyncio.run(evaluate(parser.parse_args())), sys.stdout, indent=2)


if __name__ == "__main__":
    main()
