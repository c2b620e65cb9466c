"""What the ways to give up likeness for speed save and cost: the step caches of sd.cpp, and the tiny decoder.

The caches are measured on the embedded model, several prompts, each seed once. Of the tiny decoder only the
speed is measured, on a Stable Diffusion 1.5 without its training beside a TAESD alike: no model here has both
trained. Run it on an idle machine: `.venv/bin/python -m scripts.bench.caches [--only decoders]`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import cast, get_args

from msgspec.structs import replace

from gguf_imagegen.catalog.catalog import entry_of_file
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.commands.tuning.measure import Effort, Speed, measure, warm_up
from gguf_imagegen.engines.making import make
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.modelfiles.inspect import holds_vae
from gguf_imagegen.pictures.nearness import psnr
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Decoder, Generate, LoadSpec, Role
from gguf_imagegen.vocabulary.events import Made
from scripts.bench.compare_engines import PICTURE_STEPS
from scripts.bench.synthetic import write_synthetic_sd1, write_synthetic_taesd

PROMPTS = ("a lovely cat", "a red circle", "a green tree", "a house", "a blue star", "an apple")
DECODES = 5
"""Of each decoder and size, by turns with the other's."""


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=["caches", "decoders"])
    parser.add_argument("--steps", type=int, nargs="+", default=[12, 28, 50], help="of the caches")
    parser.add_argument("--sizes", nargs="+", default=["256x256"], help="of the decoders")
    parser.add_argument("--threads", type=int, default=usable_cores())
    options = parser.parse_args()
    if options.only != "decoders":
        await caches(options.steps, options.threads)
    if options.only != "caches":
        await decoders(options.sizes, options.threads)


async def caches(counts: list[int], threads: int) -> None:
    settings = Settings()
    catalog, default = choose_models(settings)
    entry = catalog.get(default)
    headers = catalog.checked_files(entry)
    engine = EngineProcess()
    try:
        async for _ in engine.load(
            LoadSpec(entry.id, catalog.paths(entry), threads, built_in_vae=holds_vae(headers["model"]))
        ):
            pass
        print(f"{'steps':>5} {'cache':12} {'sampling':>9} {'PSNR, least':>12} {'median':>7}")
        for steps in counts:
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


async def made(engine: EngineProcess, spec: Generate) -> tuple[float, bytes]:
    """Milliseconds of sampling, and the pixels."""
    async for event in engine.run(spec):
        if isinstance(event, Made):
            picture = event.timings.sampling_ms, event.artifact.data
    return picture


async def decoders(sizes: list[str], threads: int) -> None:
    """Both in engines of their own, so that neither loads again between the measurements."""
    engines = {decoder: EngineProcess() for decoder in cast("tuple[Decoder, ...]", get_args(Decoder))}
    with tempfile.TemporaryDirectory(prefix="gguf-imagegen-bench-") as folder:
        model = write_synthetic_sd1(Path(folder) / "sd15.safetensors")
        tiny = write_synthetic_taesd(Path(folder) / "taesd.safetensors")
        try:
            for decoder, engine in engines.items():
                files: dict[Role, Path] = {"model": model, "taesd": tiny}
                async for _ in engine.load(
                    LoadSpec("sd15", files, threads, built_in_vae=True, decoder=decoder)
                ):
                    pass
            print(f"{'size':9} {'decoder':8} {'step, s':>8} {'decoding, s':>12} {'of a picture':>13}")
            for size in sizes:
                await compare_decoders(engines, model, size)
        finally:
            for engine in engines.values():
                await engine.close()


async def compare_decoders(engines: dict[Decoder, EngineProcess], model: Path, size: str) -> None:
    wanted, notes = parse_request({"prompt": PROMPTS[0], "size": size, "steps": 1, "cfg_scale": 1, "seed": 1})
    spec = warm_up(plan(wanted, entry_of_file(model), Settings(), "generation", notes).spec)
    found: dict[Decoder, list[Speed]] = {decoder: [] for decoder in engines}
    for engine in engines.values():
        await make(engine, spec)
    for _ in range(DECODES):
        for decoder, engine in engines.items():
            found[decoder].append(await measure(engine, spec, Effort(1, 0)))
    pictures = {d: statistics.median(each.picture(PICTURE_STEPS) for each in found[d]) for d in found}
    for decoder, speeds in found.items():
        step = statistics.median(each.step for each in speeds)
        decode = statistics.median(each.decode for each in speeds)
        ratio = pictures[decoder] / pictures["full"]
        print(f"{size:9} {decoder:8} {step:8.2f} {decode:12.3f} {ratio:13.2f}")


if __name__ == "__main__":
    asyncio.run(main())
