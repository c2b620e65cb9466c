"""One engine build on one model, measured: run with PYTHONPATH naming the build; figures as JSON on stdout.

python scripts/engine_speed.py MODEL --size 256x256 --steps 3 [--pictures FOLDER --seeds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from dataclasses import replace
from pathlib import Path

from gguf_imagegen.catalog.catalog import Catalog, entry_of_file
from gguf_imagegen.catalog.choose import choose_models
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.inspect import holds_vae
from gguf_imagegen.engine.cores import usable_cores
from gguf_imagegen.engine.process import EngineProcess
from gguf_imagegen.engine.protocol import GenerateSpec, ModelSpec
from gguf_imagegen.events import ImageMade
from gguf_imagegen.images import encode
from gguf_imagegen.jobs.plan import plan
from gguf_imagegen.schema.request import parse_request
from gguf_imagegen.settings import Settings


async def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds per denoising step and per decoding, medians over the repeats; the first picture warms up."""
    catalog, entry = models(options.model)
    wanted, warnings = parse_request(
        {"prompt": options.prompt, "size": options.size, "steps": options.steps, "cfg_scale": 1, "seed": 1}
    )
    spec = plan(wanted, entry, Settings(), "generation", warnings).spec
    engine = EngineProcess()
    try:
        async for _ in engine.load(model_spec(catalog, entry, options)):
            pass
        if options.pictures:
            for seed in range(options.seeds):
                await draw(
                    engine,
                    replace(spec, seed=seed, cfg_scale=entry.defaults.cfg_scale),
                    options.pictures / f"{seed}.png",
                )
        await made(engine, replace(spec, steps=1))
        all_of = [await made(engine, spec) for _ in range(options.repeats)]
    finally:
        await engine.close()
    return {
        "step": statistics.median(each.timings.sampling_ms / 1000 / each.timings.steps for each in all_of),
        "decode": statistics.median(each.timings.decoding_ms / 1000 for each in all_of),
        "conditioning": statistics.median(each.timings.conditioning_ms / 1000 for each in all_of),
    }


def models(name: str) -> tuple[Catalog, Entry]:
    path = Path(name)
    if path.suffix:
        entry = entry_of_file(path)
        return Catalog([entry], path.parent), entry
    catalog, default = choose_models(Settings(model=name))
    return catalog, catalog.get(default)


def model_spec(catalog: Catalog, entry: Entry, options: argparse.Namespace) -> ModelSpec:
    headers = catalog.checked_files(entry)
    return ModelSpec(
        name=entry.id,
        files=catalog.paths(entry),
        threads=options.threads,
        built_in_vae=any(holds_vae(header) for header in headers.values()),
        flash_attention=options.flash_attention,
    )


async def made(engine: EngineProcess, spec: GenerateSpec) -> ImageMade:
    (image,) = [event async for event in engine.generate(spec) if isinstance(event, ImageMade)]
    return image


async def draw(engine: EngineProcess, spec: GenerateSpec, path: Path) -> None:
    image = await made(engine, spec)
    data = encode(image.rgb, image.width, image.height, format="png")
    await asyncio.to_thread(path.write_bytes, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="a file, or an id of the catalog")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--prompt", default="a lighthouse at dusk")
    parser.add_argument("--flash-attention", action="store_true")
    parser.add_argument("--pictures", type=Path, help="write pictures of so many seeds into this folder")
    parser.add_argument("--seeds", type=int, default=20)
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
