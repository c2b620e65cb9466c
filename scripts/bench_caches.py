"""What the step caches of sd.cpp save and what they cost: embedded model, several prompts, each seed once.

Run it on an idle machine: `.venv/bin/python scripts/bench_caches.py [--steps 12 28 50]`.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
from dataclasses import replace

import numpy as np

from gguf_imagegen.catalog.choose import choose_models
from gguf_imagegen.catalog.inspect import holds_vae
from gguf_imagegen.engine.cores import usable_cores
from gguf_imagegen.engine.process import EngineProcess
from gguf_imagegen.engine.protocol import GenerateSpec, ModelSpec
from gguf_imagegen.events import ImageMade
from gguf_imagegen.jobs.plan import plan
from gguf_imagegen.schema.request import parse_request
from gguf_imagegen.settings import Settings

PROMPTS = ("a lovely cat", "a red circle", "a green tree", "a house", "a blue star", "an apple")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[12, 28, 50])
    parser.add_argument("--threads", type=int, default=usable_cores())
    options = parser.parse_args()
    settings = Settings()
    catalog, default = choose_models(settings)
    entry = catalog.get(default)
    headers = catalog.checked_files(entry)
    engine = EngineProcess()
    try:
        async for _ in engine.load(
            ModelSpec(
                entry.id, catalog.paths(entry), options.threads, built_in_vae=holds_vae(headers["model"])
            )
        ):
            pass
        print(f"{'steps':>5} {'cache':12} {'sampling':>9} {'PSNR, least':>12} {'median':>7}")
        for steps in options.steps:
            specs = []
            for prompt in PROMPTS:
                wanted, notes = parse_request({"prompt": prompt, "steps": steps, "seed": 1})
                specs.append(plan(wanted, entry, settings, "generation", notes).spec)
            await made(engine, specs[0])
            exact = [await made(engine, spec) for spec in specs]
            for cache in entry.traits.step_caches[1:]:
                cached = [await made(engine, replace(spec, step_cache=cache)) for spec in specs]
                ratios = [ours[0] / theirs[0] for theirs, ours in zip(exact, cached, strict=True)]
                likeness = [psnr(theirs[1], ours[1]) for theirs, ours in zip(exact, cached, strict=True)]
                ratio, middle = statistics.median(ratios), statistics.median(likeness)
                print(f"{steps:5} {cache:12} {ratio:9.2f} {min(likeness):9.1f} dB {middle:4.1f} dB")
    finally:
        await engine.close()


async def made(engine: EngineProcess, spec: GenerateSpec) -> tuple[float, bytes]:
    """Milliseconds of sampling, and the pixels."""
    async for event in engine.generate(spec):
        if isinstance(event, ImageMade):
            picture = event.timings.sampling_ms, event.rgb
    return picture


def psnr(one: bytes, other: bytes) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of 8-bit RGB."""
    difference = np.frombuffer(one, np.uint8).astype(float) - np.frombuffer(other, np.uint8)
    error = float(np.mean(difference**2))
    return 10 * math.log10(255**2 / error) if error else math.inf


if __name__ == "__main__":
    asyncio.run(main())
