"""One request on an idle server: what HTTP adds to the engine's own time, and how soon its frames come."""

from __future__ import annotations

import math
from typing import Any

from aiohttp import ClientSession

from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.pool.lane import Lane
from scripts.bench.figures import Run
from scripts.bench.server import (
    GENERATIONS,
    LONG,
    MOST_STEPS,
    PICTURE,
    SMALL,
    exhaust,
    frames,
    hosting,
    make,
    now,
    seconds,
    serving,
    stream,
)
from scripts.bench.stamps import StampedEngine

ENGINE_SECONDS = 2.0
"""Less of an engine's time would let the server's milliseconds look large, and be lost in the noise."""
TRIAL_STEPS = 5


async def overhead(run: Run) -> None:
    """A whole request over HTTP against the same generation asked of the engine directly, by turns."""
    catalog, default = choose_models(run.settings)
    entry = catalog.get(default)
    lane = Lane(catalog, run.settings, EngineProcess, Device(threads=run.settings.threads))
    try:
        async with serving(run) as (_, session), lane.loaded(entry, lambda event: None) as model:
            engine = model.engine
            body = await long_enough(session)
            wanted, warnings = parse_request(body)
            spec = plan(wanted, entry, run.settings, "generation", warnings).spec
            await exhaust(engine.run(spec))
            served, direct = [], []
            for _ in run.rounds(run.repeats):
                served.append(await seconds(make(session, body)))
                direct.append(await seconds(exhaust(engine.run(spec))))
    finally:
        await lane.close("measured")
    inside = await overheads(run, body)
    run.tell("over HTTP, PNG encoded", "s", served)
    run.tell("engine directly, raw pixels", "s", direct, fewest=ENGINE_SECONDS)
    run.tell_ratios("server ÷ engine, by turns", served, direct, most=1.03)
    run.tell("server ÷ engine, within one request", "", (whole / own for whole, own in inside), most=1.03)
    run.tell("overhead, within one request", "ms", (1000 * (whole - own) for whole, own in inside), most=20)


async def long_enough(session: ClientSession) -> dict[str, Any]:
    """A request that takes the engine at least ENGINE_SECONDS; its trial warms the server up, too."""
    await make(session, SMALL)
    trial = await seconds(make(session, {**LONG, "steps": TRIAL_STEPS}))
    steps = math.ceil(1.2 * ENGINE_SECONDS / trial * TRIAL_STEPS)
    return {**LONG, "steps": min(max(steps, TRIAL_STEPS), MOST_STEPS)}


async def overheads(run: Run, body: dict[str, Any]) -> list[tuple[float, float]]:
    """Seconds of each request and of the engine within it: free of the noise between two generations."""
    engine = StampedEngine()
    async with hosting(run, engine) as session:
        await make(session, body)
        return [(await seconds(make(session, body)), engine.took) for _ in run.rounds(run.repeats)]


async def first_byte(run: Run) -> None:
    """From sending a streamed request on an idle server to the first byte of the stream."""
    async with serving(run) as (_, session):
        await make(session, SMALL)
        waits = []
        for _ in run.rounds(run.repeats):
            began = now()
            async with session.post(GENERATIONS, json=stream(SMALL)) as answer:
                await answer.content.readany()
                waits.append(now() - began)
                await answer.read()
    run.tell("first stream byte", "ms", (1000 * wait for wait in waits), most=10)


async def step(run: Run) -> None:
    """From the engine's callback in the worker to the step's frame in the client, while the CPU computes."""
    engine = StampedEngine()
    to_server, to_client, whole = [], [], []
    async with hosting(run, engine) as session:
        await make(session, PICTURE)
        for _ in run.rounds(run.repeats):
            for called, arrived, read in await step_times(session, engine):
                to_server.append(1000 * (arrived - called))
                to_client.append(1000 * (read - arrived))
                whole.append(1000 * (read - called))
    run.tell("callback in the worker to the server's loop", "ms", to_server)
    run.tell("server's loop to the client", "ms", to_client)
    run.tell("callback to the client", "ms", whole, most=5)


async def step_times(session: ClientSession, engine: StampedEngine) -> list[tuple[float, float, float]]:
    """Of each step of one picture: when it was called back, when the server had it, when the client."""
    engine.times.clear()
    read: dict[int, float] = {}
    async with session.post(GENERATIONS, json=stream(PICTURE)) as answer:
        async for at, item in frames(answer):
            read.setdefault(item["progressed_steps"], at)
    return [(*times, read[number]) for number, times in engine.times.items()]
