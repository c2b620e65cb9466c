"""Many who wait and many who watch: what it costs them, and what they are told."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from gguf_imagegen.api.streams import all_jobs, frames
from gguf_imagegen.vocabulary.waits import Waits
from tests.api.client import GENERATIONS, SMALL, eventually, start_job
from tests.api.test_watch import ended, watching
from tests.conftest import App, RunningApp
from tests.fake_engines import NeverAnswers, QuickEngine


class Gate(QuickEngine):
    """Works when it is opened."""

    opened: asyncio.Event

    async def at_step(self, step: int) -> None:
        await self.opened.wait()


@pytest.fixture
def gate() -> type[Gate]:
    class Own(Gate):
        opened = asyncio.Event()

    return Own


async def fill(app: App, count: int) -> list[asyncio.Task[tuple[int, object]]]:
    """So many jobs, of which all but one wait."""
    tasks = [asyncio.create_task(app.post(GENERATIONS, **SMALL)) for _ in range(count)]

    async def full() -> bool:
        return bool(app.scheduler.running) and app.scheduler.waiting == count - 1

    await eventually("all have come", full)
    return tasks


async def test_a_long_queue_has_short_histories(running: RunningApp, gate: type[Gate]) -> None:
    """A job's history is as long behind ninety others as it is alone."""
    async with running(engine=gate, max_queue=100) as app:
        tasks = await fill(app, 90)
        gate.opened.set()
        assert {status for status, _ in await asyncio.gather(*tasks)} == {200}
        alone, _ = await app.post(GENERATIONS, **SMALL)
        assert alone == 200
        *crowd, last = (len(job.events) for job in app.scheduler.jobs.values())
    assert set(crowd[1:]) == {last}


async def test_those_who_watch_share_what_is_encoded(
    running: RunningApp, gate: type[Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each frame of a job is made once, for ten who watch as for one, and each of them gets all."""
    made: Counter[str] = Counter()
    encode = frames.frame

    def counted(data: dict[str, object]) -> bytes:
        made[str(data["type"])] += 1
        return encode(data)

    monkeypatch.setattr(all_jobs, "frame", counted)
    async with running(engine=gate, max_queue=100) as app:
        tasks = await fill(app, 20)
        async with watching(app) as a, watching(app) as b, watching(app) as c, watching(app) as d:
            gate.opened.set()
            await asyncio.gather(*tasks)
            for watcher in (a, b, c, d):
                for job in app.scheduler.jobs:
                    await ended(watcher, job)
    for kind in ("queued", "started", "phase", "progress", "image", "ended"):
        assert made[kind] == sum(frame["type"] == kind for frame in a.frames), kind
    for watcher in (b, c, d):
        assert watcher.types(job) == a.types(job)


async def test_one_who_was_away_for_long_gets_all(running: RunningApp) -> None:
    """More events than are remembered: a follower looks at every job, and misses none."""
    async with (
        running(engine=QuickEngine, waits=Waits(together=0.5)) as app,
        watching(app) as watcher,
    ):
        ids = []
        for _ in range(12):
            ids.append((await app.post(GENERATIONS, prompt="x", size="64x64", steps=100))[1]["id"])
        assert app.scheduler.news.count > 1000
        for job in ids:
            await ended(watcher, job)
            assert watcher.types(job).count("progress") == 100


async def test_the_order_of_the_queue_is_one_frame(running: RunningApp) -> None:
    """When somebody leaves the queue those who watch hear who waits, in order."""
    async with running(engine=NeverAnswers) as app:
        started = [await start_job(app), *[await start_job(app, "queued") for _ in range(3)]]
        tasks, jobs = zip(*started, strict=True)
        async with watching(app) as watcher:
            await app.session.delete(f"{app.url}/v1/jobs/{jobs[1]['id']}")

            async def told() -> bool:
                orders = [frame["waiting"] for frame in watcher.frames if frame["type"] == "queue"]
                return bool(orders) and orders[-1] == [
                    {"job": job["id"], "position": place, "eta": None}
                    for place, job in enumerate((jobs[2], jobs[3]), start=1)
                ]

            await eventually("the new order is told", told)
        for job in (jobs[2], jobs[3], jobs[0]):
            await app.session.delete(f"{app.url}/v1/jobs/{job['id']}")
        await asyncio.gather(*tasks)


async def test_waiting_times_are_those_of_now(running: RunningApp) -> None:
    """They are told again as the job that runs goes on, though nobody leaves the queue."""
    steps = asyncio.Semaphore(2)

    class StepByStep(QuickEngine):
        async def at_step(self, step: int) -> None:
            await steps.acquire()

    async with running(engine=StepByStep, waits=Waits(places_again=0.05)) as app, watching(app) as watcher:
        await app.post(GENERATIONS, **SMALL)
        tasks = [(await start_job(app, status))[0] for status in ("running", "queued")]

        def told() -> list[float]:
            orders = [frame["waiting"] for frame in watcher.frames if frame["type"] == "queue"]
            return [order[0]["eta"] for order in orders if order]

        async def settled() -> float:
            return told()[-1] if len(told()) > 3 and told()[-1] == told()[-2] else 0.0

        before = await eventually("a time is told", settled)
        steps.release()

        async def less() -> bool:
            return told()[-1] < before

        await eventually("a shorter time is told", less)
        for _ in range(3):
            steps.release()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("path", ["/v1/jobs", "/sdcpp/v1/jobs"])
async def test_places_are_those_of_now(running: RunningApp, path: str) -> None:
    """A job's object tells where it stands now, not where it stood once."""
    async with running(engine=NeverAnswers) as app:
        started = [await start_job(app), *[await start_job(app, "queued") for _ in range(2)]]
        tasks, jobs = zip(*started, strict=True)
        key = "position" if path == "/v1/jobs" else "queue_position"
        assert (await app.get(f"{path}/{jobs[2]['id']}"))[1][key] == 2
        await app.session.delete(f"{app.url}/v1/jobs/{jobs[1]['id']}")
        assert (await app.get(f"{path}/{jobs[2]['id']}"))[1][key] == 1
        for job in (jobs[2], jobs[0]):
            await app.session.delete(f"{app.url}/v1/jobs/{job['id']}")
        await asyncio.gather(*tasks)
