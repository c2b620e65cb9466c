"""A cluster on this machine whose engines only wait: how its server keeps up with 1 to 64 lanes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from importlib.util import find_spec

import psutil
from aiohttp import ClientSession

from scripts.bench.far import BACKEND, OTHER, Far
from scripts.bench.figures import Run, Unavailable
from scripts.bench.lanes import at_once
from scripts.bench.server import MODEL, PICTURE, make, now, serving

LANES = (1, 2, 4, 16)
FEW = (1, 4)
MANY = 64
STEPS = 10
"""Of a picture; each takes a second of a lane."""
TURNS = 3
"""Pictures that each lane makes in one measurement."""
BODY: dict[str, object] = {**PICTURE, "size": "64x64", "steps": STEPS}
SHORT: dict[str, object] = {**BODY, "steps": 1}
STAMPED: dict[str, object] = {**BODY, "prompt": "stamps"}
"""With a notice before each step, in which its time stands."""
CALM = 30.0
"""Per cent of all cores below which the machine counts as idle; looked at so often, for so long."""
CALM_TRIES, CALM_SECONDS = 15, 2.0
MIXED = 100
PAIR_SECONDS = 2
PAIR = {**BODY, "steps": PAIR_SECONDS}
FEWER, MORE = 2, 20


async def cluster(run: Run) -> None:
    """Throughput as a part of what so many lanes could do, what an event costs, turns, and loads."""
    require_ray()
    async with serving(run, flags=BACKEND) as (_, session):
        here = await delays(run, session)
    run.tell("a lane of the server itself, delay of an event", "ms", here)
    async with Far(run) as far:
        for count in FEW if run.quick else LANES:
            await far.grow(count)
            await warm(far)
            if count == FEW[0]:
                await added(run, far, here)
            await throughput(run, far)
            if count == FEW[1]:
                await turns(run, far)
                await loads(run, far)
        await costs(run, far)


async def many(run: Run) -> None:
    """As many lanes as two cores can start, on one node: throughput, and what a picture and a step cost."""
    require_ray()
    async with Far(run) as far:
        await far.grow(MANY)
        await warm(far)
        await throughput(run, far)
        await costs(run, far)


def require_ray() -> None:
    if find_spec("ray") is None:
        raise Unavailable("needs Ray: pip install 'gguf-imagegen[cluster]'")


async def warm(far: Far) -> None:
    """Each lane loads; then what Ray does after so many starts is let pass."""
    await at_once(far.ann, 2 * far.lanes, SHORT)
    for _ in range(CALM_TRIES):
        if await asyncio.to_thread(psutil.cpu_percent, CALM_SECONDS) < CALM:
            return


async def added(run: Run, far: Far, here: Sequence[float]) -> None:
    there = await delays(run, far.ann)
    run.tell("a lane of a node, delay of an event", "ms", there)
    middle = sorted(here)[len(here) // 2]
    run.tell("the same, added by the cluster", "ms", [each - middle for each in there], most=5)


async def delays(run: Run, session: ClientSession) -> list[float]:
    """Milliseconds from an engine to whoever watches all jobs; nothing else is being done."""
    found: list[float] = []
    async with session.get("/v1/events") as answer:
        making = asyncio.create_task(make(session, STAMPED))
        async for line in answer.content:
            at = time.time()
            event = json.loads(line[6:]) if line.startswith(b"data: {") else {}
            if event.get("type") == "notice":
                found.append(1000 * (at - float(event["message"])))
            if event.get("type") == "ended":
                break
        await making
    return found


async def throughput(run: Run, far: Far) -> None:
    """All jobs are in the queue at once; lanes take them as they become idle."""
    took, busy = [], []
    for _ in run.rounds(1 if run.quick or far.lanes > FEW[1] else 2):
        psutil.cpu_percent()
        began = now()
        await at_once(far.ann, TURNS * far.lanes, BODY)
        took.append(now() - began)
        busy.append(psutil.cpu_percent())
    best = TURNS * STEPS
    run.tell(f"{far.lanes} lanes, part of the best", "", [best / each for each in took], fewest=0.9)
    run.tell(f"{far.lanes} lanes, the machine was busy meanwhile", "%", busy)


async def turns(run: Run, far: Far) -> None:
    """One caller fills the queue, another has a job now and then."""
    flood = asyncio.create_task(at_once(far.ann, 10 * far.lanes, PAIR))
    waits = []
    for _ in run.rounds(far.lanes):
        began = now()
        await make(far.bob, PAIR)
        waits.append((now() - began) / PAIR_SECONDS - 1)
    await flood
    run.tell("10:1 of two callers, wait of the lesser one ÷ a job", "", waits, most=1.1)


async def loads(run: Run, far: Far) -> None:
    """Two models on the lanes, all of which have the first one."""
    before = await switches(far)
    models = [MODEL, OTHER] * (MIXED // 2)
    await asyncio.gather(*(make(far.ann, {**SHORT, "model": model}) for model in models))
    after = await switches(far)
    run.tell(f"{MIXED} jobs for two models, loads", "", [after - before], most=4)
    holding = [lane for lane in (await far.health())["lanes"] if lane["model"] == OTHER]
    run.tell("lanes that hold the second one then", "", [len(holding)], fewest=2)


async def switches(far: Far) -> float:
    async with far.ann.get("/metrics") as answer:
        found = re.search(r'imagegen_worker_ends_total{reason="switched"} (\S+)', await answer.text())
    return float(found[1]) if found else 0.0


async def costs(run: Run, far: Far) -> None:
    """Of a step and of all else: pictures with few steps and with many, on all lanes at once."""
    few, many = [await cpu(run, far, steps) for steps in (FEWER, MORE)]
    for name, less, more, most in zip(("server", "bridge"), few, many, (0.5, None), strict=True):
        step = (more - less) / (MORE - FEWER)
        run.tell(f"{far.lanes} lanes, CPU of the {name} for a step", "ms", [step], most=most)
        run.tell(f"{far.lanes} lanes, CPU of the {name} for the rest", "ms", [less - FEWER * step])


async def cpu(run: Run, far: Far, steps: int) -> list[float]:
    """Milliseconds of the server and of the bridge for each picture."""
    both = far.server.http, far.bridge
    before = [spent(each) for each in both]
    for _ in run.rounds(1):
        await at_once(far.ann, far.lanes, {**BODY, "steps": steps})
    return [1000 * (spent(each) - start) / far.lanes for each, start in zip(both, before, strict=True)]


def spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
