"""One engine build on one model, measured: run with PYTHONPATH naming the build; figures as JSON on stdout.

python -m scripts.bench.engine_speed MODEL --size 256x256 --steps 3 [--pictures FOLDER --seeds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import get_args

from msgspec.structs import replace

from gguf_imagegen.catalog.catalog import Catalog, entry_of_file
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.commands.tuning.measure import Effort, measure, warm_up
from gguf_imagegen.engines.making import make
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.pictures.encode import encode
from gguf_imagegen.planning.load_spec import model_spec
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Generate, Kernels
from gguf_imagegen.vocabulary.events import Loaded

OPTIONS = ("flash_attention", "diffusion_conv_direct", "vae_conv_direct", "huge_pages", "mmap")
"""Settings that a flag turns on or off; without it they are as the engine has them by default."""


async def speed(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the load, a step and a decoding, medians of the repeats; the first picture warms up."""
    catalog, entry = models(options.model)
    wanted, warnings = parse_request(
        {"prompt": options.prompt, "size": options.size, "steps": options.steps, "cfg_scale": 1, "seed": 1}
    )
    said = {name: getattr(options, name) for name in OPTIONS}
    said = {name: value for name, value in said.items() if value is not None}
    settings = Settings(threads=options.threads, kernels=options.kernels, **said)
    spec = plan(wanted, entry, settings, "generation", warnings).spec
    headers = catalog.checked_files(entry)
    engine = EngineProcess()
    try:
        model = model_spec(entry, catalog.paths(entry), headers, settings, options.threads)
        load = [event.seconds async for event in engine.load(model) if isinstance(event, Loaded)]
        if options.pictures:
            for seed in range(options.seeds):
                await draw(
                    engine,
                    replace(spec, seed=seed, cfg_scale=entry.defaults.cfg_scale),
                    options.pictures / f"{seed}.png",
                )
        await make(engine, warm_up(spec))
        found = await measure(engine, spec, Effort(options.steps * options.repeats, 0))
    finally:
        await engine.close()
    return {"load": load[0], "step": found.step, "decode": found.decode, "conditioning": found.conditioning}


def models(name: str) -> tuple[Catalog, Entry]:
    path = Path(name)
    if path.suffix:
        entry = entry_of_file(path)
        return Catalog([entry], path.parent), entry
    catalog, default = choose_models(Settings(model=name))
    return catalog, catalog.get(default)


async def draw(engine: EngineProcess, spec: Generate, path: Path) -> None:
    image = (await make(engine, spec)).image
    data = encode(image.data, image.width, image.height, format="png")
    await asyncio.to_thread(path.write_bytes, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="a file, or an id of the catalog")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--prompt", default="a lighthouse at dusk")
    for name in OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", action=argparse.BooleanOptionalAction)
    parser.add_argument("--kernels", choices=get_args(Kernels), default="auto")
    parser.add_argument("--pictures", type=Path, help="write pictures of so many seeds into this folder")
    parser.add_argument("--seeds", type=int, default=20)
    print(json.dumps(asyncio.run(speed(parser.parse_args()))))


if __name__ == "__main__":
    main()
