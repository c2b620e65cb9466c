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
import torch
from embedded import autoencoder, captions, dataset, export, measure, pictures
from PIL import Image
from rich.progress import track

from gguf_imagegen.catalog.catalog import PACKAGED
from gguf_imagegen.catalog.choose import choose_models
from gguf_imagegen.engine.cores import usable_cores
from gguf_imagegen.engine.process import EngineProcess
from gguf_imagegen.events import ImageMade, Loaded
from gguf_imagegen.jobs.plan import plan
from gguf_imagegen.jobs.resident import Resident
from gguf_imagegen.schema.request import parse_request
from gguf_imagegen.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
SHAPE_PROMPTS, HELD_OUT = 200, 60
NAMES = 200
STEP = 10  # from one seed to the next
GRID = (
    "cat", "dog", "apple", "rocket", "pizza", "car", "house", "sun", "penguin", "robot",
    "a red circle on a blue background", "a green star on a yellow background",
    "a pink heart on a black background", "a yellow ring on a purple background", "fish", "guitar",
)  # fmt: skip
COLUMNS = 8


class Painter:
    """The embedded model in the engine of the package."""

    def __init__(self, threads: int) -> None:
        self.settings = Settings(threads=threads)
        self.catalog, name = choose_models(self.settings)
        self.entry = self.catalog.get(name)
        self.resident = Resident(self.catalog, self.settings, EngineProcess, threads)
        self.loaded = 0.0
        self.seconds: list[float] = []

    async def paint(self, prompt: str, seed: int, **fields: Any) -> Image.Image:
        engine = await self.resident.engine_for(self.entry, self._note)
        request, warnings = parse_request({"prompt": prompt, "seed": seed, **fields})
        job = plan(request, self.entry, self.settings, "edit" if request.image else "generation", warnings)
        began = time.perf_counter()
        async for event in engine.generate(job.spec):
            if isinstance(event, ImageMade):
                picture = Image.frombytes("RGB", (event.width, event.height), event.rgb)
        self.seconds.append(time.perf_counter() - began)
        return picture

    def _note(self, event: object) -> None:
        if isinstance(event, Loaded):
            self.loaded = event.seconds


async def shapes(painter: Painter, fields: dict[str, Any]) -> dict[str, Any]:
    """Share of prompts with the right colour, background, shape, and all three."""
    rng = np.random.default_rng(0)
    every = captions.shape_prompts()
    held = [prompt for prompt in every if prompt.held_out]
    seen = [prompt for prompt in every if not prompt.held_out]
    chosen = [held[i] for i in rng.choice(len(held), HELD_OUT, replace=False)]
    chosen += [seen[i] for i in rng.choice(len(seen), SHAPE_PROMPTS - HELD_OUT, replace=False)]
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
    right = np.array(rows)
    every_one = np.asarray(right.all(1))
    names = ("colour", "background", "shape")
    return {name: share(right[:, i]) for i, name in enumerate(names)} | {
        "all three": share(every_one),
        "all three, held out": share(every_one[:HELD_OUT]),
        "prompts": len(chosen),
    }


async def emoji(
    painter: Painter, data: dataset.Pictures, names: Iterable[str], fields: dict[str, Any]
) -> float:
    """Share of names whose picture's nearest neighbour among all training pictures has that name."""
    known = np.stack([s[..., :3] + 1 - s[..., 3:] for s in data.sprites])
    right = []
    for number, name in enumerate(track(list(names), "names")):
        picture = np.asarray(await painter.paint(name, number * STEP, **fields), np.float32) / 255
        nearest = data.concepts[measure.nearest_picture(picture.astype(np.float32), known)]
        right.append(name in nearest.names)
    return share(right)


def round_trip(data: dataset.Pictures) -> float:
    """Mean PSNR of the training pictures that go through the encoder and the exported decoder."""
    decoder = autoencoder.Decoder()
    export.read_decoder(PACKAGED / "embedded-tae.gguf", decoder)
    values = []
    for picture in track(data.on_backgrounds(), "round trip"):
        with torch.no_grad():
            back = decoder(torch.from_numpy(data.encoder(picture))[None])[0].permute(1, 2, 0).numpy()
        values.append(measure.psnr(back, picture))
    return round(float(np.mean(values)), 2)


async def grid(painter: Painter, file: Path) -> None:
    """The pictures of the README."""
    gap = 4
    rows = -(-len(GRID) // COLUMNS)
    page = Image.new("RGB", ((128 + gap) * COLUMNS - gap, (128 + gap) * rows - gap), "white")
    for number, prompt in enumerate(GRID):
        place = ((number % COLUMNS) * (128 + gap), (number // COLUMNS) * (128 + gap))
        page.paste(await painter.paint(prompt, 1), place)
    file.parent.mkdir(parents=True, exist_ok=True)
    page.save(file, optimize=True)


def share(right: Any) -> float:
    return round(float(np.mean(right)), 3)


async def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    painter = Painter(options.threads)
    try:
        if options.grid_only:
            await grid(painter, options.grid)
            return {}
        data = dataset.Pictures(options.folder)
        fields = {"cfg_scale": options.cfg_scale} if options.cfg_scale else {}
        names = [concept.names[0] for concept in data.concepts]
        some = np.random.default_rng(0).choice(len(names), NAMES, replace=False)
        figures = {
            "shapes": await shapes(painter, fields),
            "everyday names": await emoji(painter, data, list(pictures.EVERYDAY), fields),
            f"{NAMES} names": await emoji(painter, data, [names[i] for i in some], fields),
            "seconds a picture": round(float(np.median(painter.seconds)), 2),
            "seconds to load": round(painter.loaded, 2),
            "round trip PSNR, dB": round_trip(data),
        }
        await grid(painter, options.grid)
        return figures
    finally:
        await painter.resident.close("done")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "embedded", help="where names are kept"
    )
    parser.add_argument("--grid", type=Path, default=ROOT / "docs" / "embedded.png", help="the grid to write")
    parser.add_argument("--grid-only", action="store_true", help="write the grid, measure nothing")
    parser.add_argument("--cfg-scale", type=float, help="instead of the model's default")
    parser.add_argument("--threads", type=int, default=usable_cores())
    json.dump(asyncio.run(evaluate(parser.parse_args())), sys.stdout, indent=2)


if __name__ == "__main__":
    main()
