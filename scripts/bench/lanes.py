"""Lanes: how throughput grows with their number, and what several on one CPU cost each picture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import ClientSession

from gguf_imagegen.api.app import make_app
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Generate, LoadSpec, Task
from gguf_imagegen.vocabulary.events import EngineEvent, Loaded, Made, PhaseChanged, Progress, Timings
from scripts.bench.figures import Run
from scripts.bench.server import PICTURE, SMALL, Instead, make, now, reaching, seconds, serving

FAKE_SECONDS = 2.0
"""Of one picture of a lane that only waits; 64 of them still leave the front 30 ms of CPU each."""
FAKE_LANES = {1: None, 2: 1.9, 8: 7.5, 64: 58.0}
"""How many, and how many times the throughput of one lane they should have."""
TURNS = 3
"""Pictures that each lane makes in one measurement."""


class Sleeper:
    """Implements `vocabulary.engine.Engine`: takes its time without using any."""

    alive = True

    async def close(self) -> None:
        self.alive = False

    async def load(self, spec: LoadSpec) -> AsyncIterator[EngineEvent]:
        yield Loaded(0.0, "fake", "FAKE")

    async def run(self, task: Task) -> AsyncIterator[EngineEvent]:
        assert isinstance(task, Generate)
        yield PhaseChanged(0, "sampling")
        await asyncio.sleep(FAKE_SECONDS)
        yield Progress(0, "sampling", task.steps, task.steps, FAKE_SECONDS)
        grey = RawImage(task.width, task.height, 3, bytes(task.width * task.height * 3))
        yield Made(0, grey, Timings(0, 1000 * FAKE_SECONDS, 0, 1000 * FAKE_SECONDS, task.steps))


async def lanes(run: Run) -> None:
    """Lanes that wait, 1 to 64; then the real engine, one lane of all cores ÷ two of half of them."""
    alone: list[float] = []
    for count, fewest in FAKE_LANES.items():
        rates = await fake_rates(run, count, len(alone) or min(3, run.repeats))
        run.tell(f"{count} lanes that wait, pictures per second", "", rates)
        alone = alone or rates
        if fewest:
            run.tell_ratios(f"throughput, {count} lanes that wait ÷ 1", rates, alone, fewest=fewest)
    await two_on_one_cpu(run)


async def fake_rates(run: Run, count: int, repeats: int) -> list[float]:
    settings = run.settings.model_copy(update={"cpu_lanes": count, "max_queue": TURNS * count})
    catalog, default = choose_models(settings)
    rates = []
    async with reaching(make_app(settings, catalog, default, Instead(settings, Sleeper))) as session:
        await at_once(session, count, SMALL)  # each lane loads
        for _ in run.rounds(repeats):
            rates.append(TURNS * count / await seconds(at_once(session, TURNS * count, SMALL)))
    return rates


async def two_on_one_cpu(run: Run) -> None:
    threads = max(1, run.settings.threads // 2)
    flags = ("--cpu-lanes", "2", "--threads", str(threads))
    rates: dict[int, list[float]] = {1: [], 2: []}
    waits: dict[int, list[float]] = {1: [], 2: []}
    async with serving(run) as (_, one), serving(run, flags=flags) as (_, two):
        sessions = {1: one, 2: two}
        for session in sessions.values():
            await at_once(session, 2, PICTURE)
        for _ in run.rounds(run.repeats):
            for number, session in sessions.items():
                waits[number].append(await seconds(make(session, PICTURE)))
                began = now()
                await at_once(session, 2 * TURNS, PICTURE)
                rates[number].append(2 * TURNS / (now() - began))
    for number in sessions:
        run.tell(f"{number} CPU lane(s), pictures per second", "", rates[number])
        run.tell(f"{number} CPU lane(s), a picture alone", "s", waits[number])
    run.tell_ratios("throughput, 2 CPU lanes ÷ 1", rates[2], rates[1])
    run.tell_ratios("a picture alone, 2 CPU lanes ÷ 1", waits[2], waits[1])


async def at_once(session: ClientSession, count: int, body: dict[str, object]) -> None:
    await asyncio.gather(*(make(session, body) for _ in range(count)))
