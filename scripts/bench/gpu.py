"""An NVIDIA GPU, checked and measured in minutes: scripts/bench/gpu builds the engine and calls this.

Pictures of the GPU against the CPU's, cancelling, two servers on one card, estimated memory against
NVML's, a step through the server against the bare engine's, throughput; as far as the time goes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientSession
from rich.console import Console
from rich.progress import Progress

from gguf_imagegen.catalog.catalog import Catalog, entry_of_file
from gguf_imagegen.catalog.memory import estimate
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.machine.devices import make_devices
from gguf_imagegen.machine.gpus import Vram, vram_of
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Generate, LoadSpec
from scripts.bench.figures import Run, as_json, table
from scripts.bench.jobs import end_of
from scripts.bench.sd_server import decibels
from scripts.bench.server import GENERATIONS, exhaust, make, now, seconds, serving, stream
from scripts.bench.synthetic import write_synthetic_sd1

MINUTES: Final = 8.0
LEAST_PSNR: Final = 40.0
"""dB between a picture of the GPU and the CPU's, as between builds for the CPU."""
APPLE: Final = {"prompt": "a red apple", "seed": 5}
LARGE: Final = {"prompt": "a lighthouse", "seed": 1, "size": "512x512", "steps": 20}
CLIENTS: Final = 4
LASTING: Final = 15.0
"""Seconds for which throughput is measured."""
LOOKS: Final = 0.02
"""Seconds between two looks at the card's memory."""
GB: Final = 1e9

Check = Callable[["Card", Run], Awaitable[None]]


class Card:
    """The device that is checked, and a model of Stable Diffusion 1.5's size for it."""

    def __init__(self, device: str, large: Path) -> None:
        self.device = device
        self.large = large

    def vram(self) -> Vram | None:
        return vram_of(self.device)

    def engine(self) -> EngineProcess:
        (device,) = make_devices((self.device,), 1, 0, usable_cores())
        return EngineProcess(device=device)

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--devices", self.device)


async def golden(card: Card, run: Run) -> None:
    """The embedded model's picture, equal each time, and like the CPU's."""
    made: dict[str, list[bytes]] = {}
    for device in (card.device, "cpu"):
        async with serving(run, "embedded", ("--devices", device)) as (_, session):
            made[device] = [await picture(session, APPLE) for _ in run.rounds(2)]
    like = decibels(*(each[0] for each in made.values()))
    run.tell("likeness to the CPU's picture", "dB", [like], fewest=LEAST_PSNR)
    run.tell("equal seeds, equal bytes", "", [float(len(set(made[card.device])) == 1)], fewest=1)


async def cancelled(card: Card, run: Run) -> None:
    """DELETE in the middle of a large picture, until the next one of the same client begins to be drawn."""
    gone, memory = [], []
    async with serving(run, str(card.large), card.flags) as (server, session):
        for _ in run.rounds(3):
            async with session.post(GENERATIONS, json=stream({**LARGE, "steps": 150})) as victim:
                await until_step(victim.content, 3)
                ended, began = asyncio.create_task(end_of(server.worker())), now()
                async with session.delete(f"/v1/jobs/{victim.headers['X-Job-Id']}") as answer:
                    answer.raise_for_status()
                gone.append(await ended - began)
            if (left := card.vram()) is not None:
                memory.append((left.total - left.free) / GB)
    run.tell("DELETE to the engine's end", "s", gone, most=0.5)
    if memory:
        run.tell("the card's memory in use afterwards", "GB", memory)


async def together(card: Card, run: Run) -> None:
    """Pictures per second of two servers on one card ÷ one's: above 1 where a picture does not fill it."""
    flags = (*card.flags, "--no-memory-check")
    async with serving(run, str(card.large), flags) as (_, one):
        alone = await rate([one])
        async with serving(run, str(card.large), flags) as (_, other):
            both = await rate([one, other])
    run.tell("two servers on the card ÷ one", "", [both / alone])


async def estimated(card: Card, run: Run) -> None:
    """The memory that is estimated for a model and size ÷ what NVML says was taken at most."""
    before = card.vram()
    if before is None:
        run.say("no tool tells the card's memory (NVML, nvidia-smi)")
        return
    model, spec, told = loading(card, Settings())
    engine = card.engine()
    try:
        async with watched(card) as seen:
            await exhaust(engine.load(model))
            await exhaust(engine.run(spec))
    finally:
        await engine.close()
    taken = before.free - min(seen, default=before.free)
    run.tell("estimated", "GB", [told / GB])
    run.tell("taken", "GB", [taken / GB])
    run.tell("estimated ÷ taken", "", [told / taken], most=1.25, fewest=0.9)


async def steps(card: Card, run: Run) -> None:
    """A picture through HTTP ÷ the engine called directly, by turns."""
    model, spec, _ = loading(card, Settings())
    engine, raw, served = card.engine(), [], []
    try:
        await exhaust(engine.load(model))
        async with serving(run, str(card.large), (*card.flags, "--no-memory-check")) as (_, session):
            await make(session, LARGE)
            await exhaust(engine.run(spec))
            for _ in run.rounds(3):
                raw.append(await seconds(exhaust(engine.run(spec))))
                served.append(await seconds(make(session, LARGE)))
    finally:
        await engine.close()
    run.tell("the engine alone", "s", raw)
    run.tell("steps per second, decoding included", "1/s", [spec.steps / each for each in raw])
    run.tell_ratios("through the server ÷ the engine alone", served, raw, most=1.03)


async def throughput(card: Card, run: Run) -> None:
    """Pictures per minute for clients that always want one more."""
    async with serving(run, str(card.large), card.flags) as (_, session):
        run.tell("512x512, 20 steps", "pictures/min", [60 * await rate([session] * CLIENTS)])
    async with serving(run, "embedded", card.flags) as (_, session):
        run.tell("the embedded model", "pictures/min", [60 * await rate([session] * CLIENTS, APPLE)])


CHECKS: Final[dict[str, Check]] = {
    "picture": golden,
    "cancel": cancelled,
    "step": steps,
    "memory": estimated,
    "throughput": throughput,
    "two": together,
}


async def picture(session: ClientSession, body: dict[str, Any]) -> bytes:
    asked = {**body, "response_format": "b64_json"}
    async with session.post(GENERATIONS, json=asked) as answer:
        answer.raise_for_status()
        return base64.b64decode((await answer.json())["data"][0]["b64_json"])


async def rate(sessions: Sequence[ClientSession], body: dict[str, Any] = LARGE) -> float:
    """Pictures per second of clients that always want one more; those under way at the end count in part."""
    ends = now() + LASTING
    done: list[float] = []

    async def ask(session: ClientSession) -> None:
        while (began := now()) < ends:
            await make(session, body)
            done.append(share(began, now(), ends))

    await asyncio.gather(*(ask(session) for session in sessions))
    return sum(done) / LASTING


def share(began: float, ended: float, limit: float) -> float:
    """How much of what was done between two times was done before the limit."""
    return min(1.0, (limit - began) / (ended - began))


def loading(card: Card, settings: Settings) -> tuple[LoadSpec, Generate, int]:
    """The large model, a picture of it, and the bytes that are estimated for both."""
    entry = entry_of_file(card.large)
    catalog = Catalog([entry], card.large.parent)
    headers = catalog.checked_files(entry)
    wanted, warnings = parse_request(dict(LARGE))
    spec = plan(wanted, entry, settings, "generation", warnings).spec
    model = LoadSpec(
        name=entry.id,
        files=catalog.paths(entry),
        threads=usable_cores(),
        built_in_vae=True,
        flash_attention=True,
    )
    told = estimate(headers, entry.family, spec.width, spec.height, gpu=True, flash_attention=True)
    return model, spec, told.total(False)


async def until_step(content: AsyncIterable[bytes], step: int) -> None:
    async for line in content:
        if line.startswith(b"data: {") and any(
            item.get("progressed_steps", 0) >= step for item in json.loads(line[6:])["data"]
        ):
            return
    raise RuntimeError("the job ended before it could be cancelled")


@asynccontextmanager
async def watched(card: Card) -> AsyncIterator[list[int]]:
    """The card's free bytes, again and again."""
    seen: list[int] = []

    async def look() -> None:
        while True:
            if (left := await asyncio.to_thread(card.vram)) is not None:
                seen.append(left.free)
            await asyncio.sleep(LOOKS)

    task = asyncio.create_task(look())
    try:
        yield seen
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def run_all(
    checks: Mapping[str, Check], card: Card, until: float, start: Callable[[str], Run]
) -> dict[str, str]:
    """Each check for which there is time; what could not be run, and why."""
    missing: dict[str, str] = {}
    for name, check in checks.items():
        left = until - time.monotonic()
        if left <= 0:
            missing[name] = "no time was left"
            continue
        try:
            await asyncio.wait_for(check(card, start(name)), left)
        except asyncio.TimeoutError:
            missing[name] = "it took too long"
        except Exception as exc:  # of whatever this machine is the first to show; the other checks go on
            missing[name] = f"{type(exc).__name__}: {exc}"
    return missing


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for everything")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    console = Console()
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as bar:
        settings = Settings(models_dir=Path(folder), threads=usable_cores())

        def start(name: str) -> Run:
            runs.append(Run(name, settings, 3, True, "512x512", bar))
            return runs[-1]

        card = Card(options.device, write_synthetic_sd1(Path(folder) / "sd1.safetensors"))
        chosen = {name: CHECKS[name] for name in options.only}
        missing = asyncio.run(run_all(chosen, card, until, start))
    figures = [figure for run in runs for figure in run.figures]
    console.print(table(f"gguf-imagegen on {options.device}", figures, usable_cores()))
    for name, why in missing.items():
        console.print(f"{name}: not measured: {why}", highlight=False)
    if options.json:
        options.json.write_text(as_json(figures, missing, usable_cores()), encoding="utf-8")
    return 1 if missing or any(figure.verdict == "miss" for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
