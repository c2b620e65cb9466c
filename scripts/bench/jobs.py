"""Several clients at once: cancels, followers of one job, and a queue that many share."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

import numpy as np
import psutil
from aiohttp import ClientResponse, ClientSession

from scripts.bench.figures import Run
from scripts.bench.server import (
    GENERATIONS,
    LONG,
    PICTURE,
    SMALL,
    frames,
    make,
    now,
    rss,
    seconds,
    serving,
    stream,
)

FOLLOWERS = 500
CLIENTS = (1, 4, 16)
"""How many ask at once; the greatest is what the queue takes by default."""
REQUESTS = 3
"""Of each client, one after the other."""
WANTED = {**SMALL, "steps": 4}


async def cancel(run: Run) -> None:
    """DELETE on a running job, with another one waiting."""
    answered, gone, started, reloaded = [], [], [], []
    async with serving(run) as (server, session):
        for _ in run.rounds(run.repeats):
            async with (
                session.post(GENERATIONS, json=stream(LONG)) as victim,
                session.post(GENERATIONS, json=stream(SMALL, "both")) as waiting,
            ):
                await until_sampling(victim)
                process = server.worker()
                following = asyncio.create_task(start_and_reload(waiting))
                watching = asyncio.create_task(end_of(process))
                began = now()
                async with session.delete(f"/v1/jobs/{victim.headers['X-Job-Id']}") as answer:
                    assert (await answer.json())["status"] == "cancelled"
                answered.append(now() - began)
                gone.append(await watching - began)
                start, reload = await following
                started.append(start - began)
                reloaded.append(reload - start)
    run.tell("DELETE to its answer", "s", answered)
    run.tell("DELETE to the worker's end", "s", gone)
    run.tell("DELETE to the start of the next job", "s", started)
    run.tell("all three", "s", map(max, answered, gone, started), most=0.5)
    run.tell("start of the next job to model reloaded", "s", reloaded)


async def until_sampling(answer: ClientResponse) -> None:
    async for _, item in frames(answer):
        if item["progressed_steps"] > 1:
            return
    raise RuntimeError("the job ended before it could be cancelled")


async def start_and_reload(answer: ClientResponse) -> tuple[float, float]:
    """When the job left the queue, and when its first phase after the loading began."""
    async for line in answer.content:
        if line.startswith(b": job.started"):
            start = now()
            break
    async for at, item in frames(answer):
        if item["phase"] not in ("queued", "loading"):
            await answer.read()
            return start, at
    raise RuntimeError("the waiting job was not worked on")


async def end_of(process: psutil.Process) -> float:
    while True:
        if not process.is_running():
            return now()
        await asyncio.sleep(0.001)


async def followers(run: Run) -> None:
    """Many clients on the events of one job, from its queue to its end."""
    incomplete, peaks, spreads = [], [], []
    async with serving(run) as (server, session):
        idle = rss(server.http)
        for _ in run.rounds(3):
            async with (
                session.post(GENERATIONS, json=stream(LONG)) as blocker,
                session.post(GENERATIONS, json=stream(PICTURE)) as followed,
            ):
                watching = asyncio.create_task(peak_of(server.http))
                path = f"/v1/jobs/{followed.headers['X-Job-Id']}/events"
                answers = await asyncio.gather(*(session.get(path) for _ in range(FOLLOWERS)))
                async with session.delete(f"/v1/jobs/{blocker.headers['X-Job-Id']}"):
                    pass
                ends = await asyncio.gather(*map(follow, answers))
                watching.cancel()
                complete = [end for end in ends if end is not None]
                incomplete.append(FOLLOWERS - len(complete))
                spreads.append(max(complete) - min(complete))
                peaks.append(await watching)
    run.tell(f"of {FOLLOWERS} followers incomplete", "", incomplete, most=0)
    run.tell("first to last follower's end", "s", spreads)
    run.tell("HTTP process before", "MB", [idle])
    run.tell("HTTP process, greatest RSS", "MB", peaks, most=200)


async def follow(answer: ClientResponse) -> float | None:
    """When the stream came to its proper end; None if a step, the image or the end is missing."""
    async with answer:
        text = await answer.read()
    ids = [int(id) for id in re.findall(rb"^id: (\d+)$", text, re.MULTILINE)]
    whole = ids == list(range(len(ids))) and b".completed" in text and text.endswith(b"data: [DONE]\n\n")
    return now() if whole else None


async def peak_of(process: psutil.Process) -> float:
    """The greatest RSS until cancelled."""
    peak = 0.0
    try:
        while True:
            peak = max(peak, rss(process))
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        return peak


async def concurrency(run: Run) -> None:
    """Clients that ask again as soon as they were answered: throughput, and how evenly they wait.

    In a fair queue each request waits for one of every client, its own included.
    """
    async with serving(run) as (_, session):
        await make(session, WANTED)
        alone: list[float] = []
        rates: dict[int, list[float]] = {}
        for count in CLIENTS:
            halves, tails, shares, fairness = [], [], [], []
            rates[count] = []
            for _ in run.rounds(run.repeats):
                before = await seconds(make(session, WANTED))
                began = now()
                waits = await asyncio.gather(*(patient(session) for _ in range(count)))
                rates[count].append(count * REQUESTS / (now() - began))
                service = (before + await seconds(make(session, WANTED))) / 2
                every = [wait for each in waits for wait in each]
                halves.append(float(np.percentile(every, 50)))
                tails.append(float(np.percentile(every, 99)))
                shares.append(max(every) / (count * service))
                fairness.append(evenness(map(sum, waits)))
                alone.append(service)
            run.tell(f"{count} clients, pictures per second", "", rates[count])
            run.tell(f"{count} clients, wait, 50th percentile", "s", halves)
            run.tell(f"{count} clients, wait, 99th percentile", "s", tails)
            run.tell(f"{count} clients, greatest wait ÷ (clients × service)", "", shares, most=1.2)
            run.tell(f"{count} clients, fairness (1 = all alike)", "", fairness, fewest=0.95)
    run.tell("service time", "s", alone)
    for count in CLIENTS[1:]:
        run.tell_ratios(f"throughput, {count} clients ÷ 1", rates[count], rates[1], fewest=0.95)


async def patient(session: ClientSession) -> list[float]:
    """How long each request of one client took, the time in the queue included."""
    return [await seconds(make(session, WANTED)) for _ in range(REQUESTS)]


def evenness(waits: Iterable[float]) -> float:
    """Jain's index: 1 if all are alike, 1/n if one bears everything."""
    values = list(waits)
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))
