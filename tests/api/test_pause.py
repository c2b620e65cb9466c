"""The pause after crashes: who waits goes on waiting, who comes is told when to come again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gguf_imagegen.jobs.job import Started
from gguf_imagegen.vocabulary.engine import Generate
from gguf_imagegen.vocabulary.errors import WorkerCrashed, WorkerKilled
from gguf_imagegen.vocabulary.events import EngineEvent
from gguf_imagegen.vocabulary.waits import Waits
from tests.api.client import GENERATIONS, SMALL, eventually
from tests.api.test_residency import Engines, catalog
from tests.conftest import App, RunningApp
from tests.fake_engines import QuickEngine

__all__ = ["catalog"]
CHAT = {"messages": [{"role": "user", "content": "a cat"}]}
DIALECTS = {
    GENERATIONS: SMALL,
    "/v1-openai/images/generations": SMALL,
    "/v3/images/generations": SMALL,
    "/v1/chat/completions": CHAT,
    "/sdapi/v1/txt2img": SMALL,
    "/sdcpp/v1/img_gen": SMALL,
}


class Doomed(QuickEngine):
    """Dies under the prompt "doom", when it is let."""

    doom: asyncio.Event

    async def generate(self, spec: Generate) -> AsyncIterator[EngineEvent]:
        self.prompt = spec.prompt
        async for event in super().generate(spec):
            yield event

    async def at_step(self, step: int) -> None:
        if self.prompt == "doom":
            await self.doom.wait()
            await self.close()
            raise WorkerCrashed("The engine stopped unexpectedly (SIGSEGV).")


@pytest.fixture
def doomed() -> type[Doomed]:
    class Own(Doomed):
        doom = asyncio.Event()

    return Own


async def waiting(app: App, count: int) -> None:
    async def all_there() -> bool:
        return app.scheduler.waiting == count

    await eventually(f"{count} wait", all_there)


async def paused(app: App, doomed: type[Doomed], behind: int) -> list[asyncio.Task[tuple[int, object]]]:
    """Three jobs that crash, and so many behind them that now wait out the pause."""
    dooms = [asyncio.create_task(app.post(GENERATIONS, **{**SMALL, "prompt": "doom"})) for _ in range(3)]
    await waiting(app, 2)
    tasks = [asyncio.create_task(app.post(GENERATIONS, **SMALL)) for _ in range(behind)]
    await waiting(app, 2 + behind)
    doomed.doom.set()
    assert [status for status, _ in await asyncio.gather(*dooms)] == [500] * 3
    assert (app.scheduler.waiting, app.scheduler.running) == (behind, [])
    return tasks


async def test_those_who_wait_wait_it_out(running: RunningApp, doomed: type[Doomed]) -> None:
    """The three whose engine died have failed, the ten behind them get their pictures."""
    async with running(engine=doomed, waits=Waits(crash_pause=1.0)) as app:
        tasks = await paused(app, doomed, behind=10)
        assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * 10
        assert (await app.post(GENERATIONS, **SMALL))[0] == 200


async def test_those_who_come_are_refused_in_every_dialect(running: RunningApp, doomed: type[Doomed]) -> None:
    """503 with the seconds to wait, which official clients obey, and no job; health says the same."""
    async with running(engine=doomed) as app:
        (task,) = await paused(app, doomed, behind=1)
        for path, body in DIALECTS.items():
            async with app.session.post(app.url + path, json=body) as answer:
                assert (answer.status, answer.headers["x-should-retry"]) == (503, "true"), path
                assert 1 <= int(answer.headers["Retry-After"]) <= 15
                assert "engine_paused" in await answer.text()
        assert len(app.scheduler.jobs) == 4
        status, health = await app.get("/health")
        assert (status, health["status"], health["ready"], health["queue"]) == (503, "paused", False, 1)
        assert 1 <= health["pause"] <= 15
        (job,) = app.scheduler.queue
        async with app.session.delete(f"{app.url}/v1/jobs/{job.id}") as answer:
            assert (await answer.json())["status"] == "cancelled"
        assert (await task)[0] == 499


async def test_the_end_does_not_wait_for_it(running: RunningApp, doomed: type[Doomed]) -> None:
    """A server that shuts down cancels at once what could not begin in the time that is left."""
    async with running(engine=doomed) as app:
        tasks = await paused(app, doomed, behind=3)
        await asyncio.wait_for(app.scheduler.drain(10), 9)
        assert [status for status, _ in await asyncio.gather(*tasks)] == [503] * 3


class Victim(QuickEngine):
    """Is killed from outside in the second step, as often as `kills` is long; not before `go`."""

    kills: list[None]
    go: asyncio.Event

    async def at_step(self, step: int) -> None:
        await self.go.wait()
        if step == 2 and self.kills:
            self.kills.pop()
            await self.close()
            raise WorkerKilled("The engine stopped unexpectedly (SIGKILL, perhaps out of memory).")


def victim(kills: int) -> type[Victim]:
    return type("Own", (Victim,), {"kills": [None] * kills, "go": asyncio.Event()})


async def test_a_lost_lane_costs_an_attempt(running: RunningApp) -> None:
    """The job is begun again and says so; events go on, and pictures that were made are not made again."""
    engines = Engines(killed := victim(2))
    killed.go.set()
    async with running(engine=engines) as app:
        status, body = await app.post(GENERATIONS, **{**SMALL, "steps": 2, "n": 2, "seed": 5})
        assert (status, [item["seed"] for item in body["data"]]) == (200, [5, 6])
        words = "The engine stopped unexpectedly (SIGKILL, perhaps out of memory)."
        assert body["warnings"] == [f"{words} Attempt {number} of 3 follows." for number in (2, 3)]
        job = app.scheduler.jobs[body["id"]]
        assert job.ids == list(range(len(job.events)))
        assert [event.index for event in job.images] == [0, 1]
        assert sum(isinstance(event, Started) for event in job.events) == 3
    assert len(engines.loads) == 3


async def test_a_job_is_begun_three_times_at_most(running: RunningApp) -> None:
    """Perhaps it is what takes all memory. Whoever waits sits out the pause that follows."""
    killed = victim(3)
    async with running(engine=killed, waits=Waits(crash_pause=1.0)) as app:
        lost = asyncio.create_task(app.post(GENERATIONS, **{**SMALL, "steps": 2}))

        async def begun() -> bool:
            return bool(app.scheduler.running)

        await eventually("it runs", begun)
        behind = asyncio.create_task(app.post(GENERATIONS, **{**SMALL, "steps": 2}))
        await waiting(app, 1)
        killed.go.set()
        status, body = await lost
        assert (status, body["error"]["code"]) == (500, "worker_crashed")
        assert "SIGKILL" in body["error"]["message"]
        assert (await behind)[0] == 200


async def test_a_model_in_memory_goes_on(running: RunningApp, catalog: Path) -> None:
    """The pause is for engines that would have to be started."""

    class DiesOfB(QuickEngine):
        async def at_step(self, step: int) -> None:
            if self.model.name == "b":
                await self.close()
                raise WorkerCrashed("The engine stopped unexpectedly (SIGSEGV).")

    async with running(engine=DiesOfB, catalog=catalog, model="a", max_loaded=2) as app:
        statuses = [(await app.post(GENERATIONS, model=model, **SMALL))[0] for model in "abbbbaa"]
        assert statuses == [200, 500, 500, 500, 503, 200, 200]
        status, health = await app.get("/health")
        assert (status, health["pause"] is not None) == (200, True)


async def test_an_engine_that_was_dead_before_costs_nobody(running: RunningApp) -> None:
    """It died between two jobs and nobody had noticed: the next job gets another engine."""

    class DiesAfterOne(QuickEngine):
        made = 0

        async def generate(self, spec: Generate) -> AsyncIterator[EngineEvent]:
            if self.made:
                await self.close()
                raise WorkerCrashed("The engine stopped unexpectedly (SIGKILL).")
            self.made += 1
            async for event in super().generate(spec):
                yield event

    engines = Engines(DiesAfterOne)
    async with running(engine=engines) as app:
        assert [(await app.post(GENERATIONS, **SMALL))[0] for _ in range(5)] == [200] * 5
        assert app.service.pool.pause == 0
    assert len(engines.loads) == 5
