"""One engine build draws pictures of one model: run with PYTHONPATH naming the build; times as JSON.

Seconds of the clock, and `NAME_cpu` those of the processor: with one thread the latter are nearly what the
engine would take on an idle machine, whatever else runs. `picture` is all of it, the prompt too; `peak_gb`
is the greatest memory of the worker.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import statistics
import time
from pathlib import Path
from typing import get_args

import psutil
from msgspec.structs import replace

from gguf_imagegen.catalog.catalog import Catalog, entry_of_file
from gguf_imagegen.commands.tuning.measure import warm_up
from gguf_imagegen.engines.making import make
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.pictures.encode import encode
from gguf_imagegen.planning.load_spec import model_spec
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Generate, Kernels
from gguf_imagegen.vocabulary.events import Made, Progress
from scripts.bench.contest.priority import take_priority

OPTIONS = ("flash_attention", "diffusion_conv_direct", "vae_conv_direct")
WARM_SIDE = 64
"""A picture so small warms up threads and weights in little time; sd.cpp takes its buffers anew for each."""
Stamp = tuple[float, float]


async def measured(options: argparse.Namespace) -> dict[str, float]:
    entry = entry_of_file(options.model)
    catalog = Catalog([entry], options.model.parent)
    words = {"prompt": "a lighthouse at dusk", "size": options.size, "steps": options.steps, "seed": 1}
    wanted, notes = parse_request({**words, "cfg_scale": 1})
    said = {name: getattr(options, name) for name in OPTIONS if getattr(options, name) is not None}
    settings = Settings(threads=options.threads, kernels=options.kernels, tuning=False, **said)
    spec = plan(wanted, entry, settings, "generation", notes).spec
    engine = EngineProcess()
    try:
        load = model_spec(
            entry, catalog.paths(entry), catalog.checked_files(entry), settings, options.threads
        )
        async for _ in engine.load(load):
            pass
        take_priority(engine.pid)
        if options.pictures:
            await draw(engine, spec, options.pictures, options.seeds)
            return {}
        await make(engine, replace(warm_up(spec), width=WARM_SIDE, height=WARM_SIDE))
        return await timed(engine, spec, decode=not options.no_decode)
    finally:
        await engine.close()


async def draw(engine: EngineProcess, spec: Generate, folder: Path, seeds: int) -> None:
    for seed in range(seeds):
        image = (await make(engine, replace(spec, seed=seed))).image
        png = encode(image.data, image.width, image.height, format="png")
        await asyncio.to_thread((folder / f"{seed}.png").write_bytes, png)


async def timed(engine: EngineProcess, spec: Generate, *, decode: bool) -> dict[str, float]:
    """One picture, or only its steps; a step is the median of all of them."""
    stamps, sampled = [stamp(engine)], 0
    async for event in engine.run(spec):
        match event:
            case Progress(phase="sampling", step=step) if step > sampled or step == 0:
                stamps.append(stamp(engine))
                sampled = step
                if sampled == spec.steps and not decode:
                    break
            case Made():
                stamps.append(stamp(engine))
    return parts(stamps, spec.steps, decode=decode) | {"peak_gb": peak(engine)}


def parts(stamps: list[Stamp], steps: int, *, decode: bool = True) -> dict[str, float]:
    """From the stamps of the begin, the first step's begin, each step's end, and the decoded picture."""
    first = len(stamps) - steps - 1 - decode
    found = {}
    for clock, suffix in enumerate(("", "_cpu")):
        at = [stamp[clock] for stamp in stamps]
        ends = at[first : first + steps + 1]
        found[f"step{suffix}"] = statistics.median(end - begin for begin, end in itertools.pairwise(ends))
        found[f"prompt{suffix}"] = at[first] - at[0]
        if decode:
            found[f"decode{suffix}"] = at[-1] - at[-2]
            found[f"picture{suffix}"] = at[-1] - at[0]
    return found


def stamp(engine: EngineProcess) -> Stamp:
    times = psutil.Process(engine.pid).cpu_times()
    return time.perf_counter(), times.user + times.system


def peak(engine: EngineProcess) -> float:
    """Greatest resident memory so far, GB."""
    status = Path(f"/proc/{engine.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 / 1e9 if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernels", choices=get_args(Kernels), default="auto")
    for name in OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", action=argparse.BooleanOptionalAction)
    parser.add_argument("--no-decode", action="store_true", help="leave the picture after its steps")
    parser.add_argument("--pictures", type=Path, help="only write pictures into this folder")
    parser.add_argument("--seeds", type=int, default=3)
    print(json.dumps(asyncio.run(measured(parser.parse_args()))))


if __name__ == "__main__":
    main()
