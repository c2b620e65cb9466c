"""Several lanes: jobs at once, each cancelled alone, and memory that does not hold a second copy."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from gguf_imagegen.vocabulary.engine import Generate
from gguf_imagegen.vocabulary.events import EngineEvent
from gguf_imagegen.vocabulary.waits import Waits
from tests.api.client import GENERATIONS, SMALL, eventually, job_in_state, start_job
from tests.api.test_pause import Doomed
from tests.api.test_residency import Engines, catalog
from tests.conftest import App, RunningApp, ServerProcess
from tests.fake_engines import MissesCancel, NeverAnswers, QuickEngine

__all__ = ["catalog"]


async def cancel(app: App, job: Any) -> str:
    async with app.session.delete(f"{app.url}/v1/jobs/{job['id']}") as answer:
        return str((await answer.json())["status"])


async def lanes(app: App) -> list[tuple[str, str]]:
    """The name and the status of each."""
    _, health = await app.get("/health")
    return [(lane["name"], lane["status"]) for lane in health["lanes"]]


async def idle(app: App) -> None:
    async def all_idle() -> bool:
        return {status for _, status in await lanes(app)} == {"idle"}

    await eventually("all lanes are idle", all_idle)


class Gate(QuickEngine):
    """Goes on sampling when `opened` is set."""

    opened: asyncio.Event

    async def at_step(self, step: int) -> None:
        await self.opened.wait()


def gate() -> type[Gate]:
    class Own(Gate):
        opened = asyncio.Event()

    return Own


async def test_two_clients_one_cancel(running: RunningApp) -> None:
    """Two jobs run at once, on lanes of their own; a cancel ends one of them and its engine alone."""
    engines = Engines(NeverAnswers)
    async with running(engine=engines, cpu_lanes=2) as app:
        await idle(app)
        (first, one), (second, other) = [await start_job(app) for _ in range(2)]
        assert {one["lane"], other["lane"]} == {"cpu:0", "cpu:1"}

        async def both() -> bool:
            return await lanes(app) == [("cpu:0", "running"), ("cpu:1", "running")]

        await eventually("both run", both)
        _, health = await app.get("/health")
        found = {lane["job"]: (lane["name"], lane["status"], lane["model"]) for lane in health["lanes"]}
        assert found == {job["id"]: (job["lane"], "running", "tiny-random") for job in (one, other)}
        assert (health["running"], health["queue"]) == (one["id"], 0)
        async with app.session.get(f"{app.url}/metrics") as answer:
            text = await answer.text()
            assert "imagegen_jobs_running 2.0" in text
            assert 'imagegen_lane_status{lane="cpu:1",status="running"} 1.0' in text
            assert 'imagegen_lane_status{lane="cpu:1",status="idle"} 0.0' in text
        assert await cancel(app, one) == "cancelled"
        assert (await first)[0] == 499
        assert (await app.get(f"/v1/jobs/{other['id']}"))[1]["status"] == "running"
        assert len(engines.loaded) == 1
        assert await cancel(app, other) == "cancelled"
        assert (await second)[0] == 499


class Graphics:
    """GPUs of which `nvidia-smi` tells; free and total memory in MiB by number."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        tool = folder / "nvidia-smi"
        tool.write_text(f'#!/bin/sh\ncat {folder}/"$4"\n')
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        monkeypatch.setitem(sys.modules, "pynvml", None)

    def have(self, number: int, free: int, total: int) -> None:
        (self._folder / str(number)).write_text(f"{free}, {total}\n")


async def test_equal_work_on_lanes_of_different_memory(
    running: RunningApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one lane must decode in tiles all do; one that is short of memory just now is passed over."""
    tiled: list[tuple[str, bool]] = []
    kind = gate()

    class Notes(kind):  # type: ignore[valid-type, misc]
        async def generate(self, spec: Generate) -> AsyncIterator[EngineEvent]:
            tiled.append((spec.prompt, spec.vae_tiling))
            async for event in super().generate(spec):
                yield event

    graphics = Graphics(tmp_path, monkeypatch)
    graphics.have(0, 24_000, 24_000)
    graphics.have(1, 1_000, 1_000)

    async def two(app: App, size: str) -> list[str]:
        """Two jobs at once, the first on the large GPU; the lanes on which they were made."""
        kind.opened.clear()
        asked = {"size": size, "seed": 7, "steps": 1}
        first = asyncio.create_task(app.post(GENERATIONS, prompt=f"one {size}", **asked))
        await job_in_state(app, "running")
        second = asyncio.create_task(app.post(GENERATIONS, prompt=f"two {size}", **asked))

        async def both_begin() -> bool:
            return (len(app.scheduler.jobs) % 2 == 0 and len(tiled) == 2) or bool(app.scheduler.waiting)

        await eventually("the second has a lane, or waits for one", both_begin)
        kind.opened.set()
        assert {status for status, _ in await asyncio.gather(first, second)} == {200}
        return [job.lane or "" for job in list(app.scheduler.jobs.values())[-2:]]

    async with running(engine=Notes, devices=("cuda:0", "cuda:1")) as app:
        await idle(app)
        assert await two(app, "512x512") == ["cuda:0", "cuda:1"]
        assert tiled == [("one 512x512", True), ("two 512x512", True)]
        tiled.clear()
        assert await two(app, "384x384") == ["cuda:0", "cuda:1"]
        assert tiled == [("one 384x384", False), ("two 384x384", False)]
        tiled.clear()
        graphics.have(1, 250, 1_000)
        assert await two(app, "384x384") == ["cuda:0", "cuda:0"]
        assert tiled == [("one 384x384", False), ("two 384x384", False)]
        tiled.clear()
        graphics.have(0, 250, 24_000)
        kind.opened.set()
        status, body = await app.post(GENERATIONS, prompt="three", size="384x384", steps=1)
        assert (status, tiled) == (200, [("three", True)])
        assert "memory is short just now" in body["warnings"][0]


async def test_one_lane_waits(running: RunningApp) -> None:
    """With one lane one job runs, as ever; its lane is called auto."""
    async with running(engine=NeverAnswers) as app:
        first, one = await start_job(app)
        second, other = await start_job(app, status="queued")
        assert (one["lane"], other["lane"], other["position"]) == ("auto", None, 1)
        assert [await cancel(app, job) for job in (other, one)] == ["cancelled"] * 2
        await asyncio.gather(first, second)
        assert await lanes(app) == [("auto", "idle")]


async def test_a_crash_is_one_lanes_own(running: RunningApp) -> None:
    """The job on the other lane goes on, and so does its engine; crashes in a row pause one lane only."""

    class Dies(Doomed):
        doom = asyncio.Event()
        opened = asyncio.Event()

        async def at_step(self, step: int) -> None:
            await super().at_step(step)
            await self.opened.wait()

    Dies.doom.set()
    async with running(engine=Dies, cpu_lanes=2) as app:
        task, job = await start_job(app)
        for _ in range(3):
            assert (await app.post(GENERATIONS, **{**SMALL, "prompt": "doom"}))[0] == 500
        assert (await app.get(f"/v1/jobs/{job['id']}"))[1]["status"] == "running"
        assert sorted(status for _, status in await lanes(app)) == ["paused", "running"]
        assert (await app.get("/health"))[0] == 200
        Dies.opened.set()
        assert (await task)[0] == 200


async def test_models_keep_to_their_lanes(running: RunningApp, catalog: Path) -> None:
    """Two clients that alternate between two models load each once."""
    engines = Engines()
    async with running(engine=engines, catalog=catalog, model="a", cpu_lanes=2, swap_after=600) as app:
        await idle(app)
        for pair in ("ab", "ba", "ab"):
            answers = await asyncio.gather(*(app.post(GENERATIONS, model=m, **SMALL) for m in pair))
            assert [status for status, _ in answers] == [200, 200]
        assert (sorted(engines.loads), sorted(engines.loaded)) == (["a", "b"], ["a", "b"])
        assert (await app.post("/v1/models/a/unload"))[0] == 202

        async def alone() -> bool:
            return engines.loaded == ["b"]

        await eventually("a is unloaded", alone)


def one_fits(model_dir: Path) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in model_dir.glob("tiny-random*")) / 1e6
    return {"cpu_lanes": 2, "memory_budget_mb": 1.5 * size}


async def test_a_second_copy_that_does_not_fit(running: RunningApp, catalog: Path, model_dir: Path) -> None:
    """The job waits for the lane that has the model, and is told so; nothing failed."""
    kind = gate()
    engines = Engines(kind)
    async with running(engine=engines, catalog=catalog, model="a", **one_fits(model_dir)) as app:
        await idle(app)
        first, _ = await start_job(app)
        second, other = await start_job(app, status="queued")

        async def put_back() -> bool:
            events = [type(event).__name__ for event in app.scheduler.jobs[other["id"]].events]
            return events == ["Queued", "Started", "Queued"]

        await eventually("the job is back in the queue", put_back)
        assert (await app.get("/health"))[1]["queue"] == 1
        kind.opened.set()
        assert [(await task)[0] for task in (first, second)] == [200, 200]
        assert (await app.get(f"/v1/jobs/{other['id']}"))[1]["lane"] == "cpu:0"
    assert engines.loads == ["a"]


async def test_a_job_that_was_put_back_can_be_cancelled(
    running: RunningApp, catalog: Path, model_dir: Path
) -> None:
    """Like any that waits."""
    kind = gate()
    async with running(engine=kind, catalog=catalog, model="a", **one_fits(model_dir)) as app:
        await idle(app)
        first, _ = await start_job(app)
        second, other = await start_job(app, status="queued", model="b")
        assert await cancel(app, other) == "cancelled"
        kind.opened.set()
        assert [(await task)[0] for task in (first, second)] == [200, 499]


async def test_models_of_idle_lanes_make_room(running: RunningApp, catalog: Path, model_dir: Path) -> None:
    """With room for one model, one after the other is loaded, on whatever lane; too large is refused."""
    engines = Engines()
    async with running(engine=engines, catalog=catalog, model="a", **one_fits(model_dir)) as app:
        await idle(app)
        for model in "bab":
            assert (await app.post(GENERATIONS, model=model, **SMALL))[0] == 200
        assert engines.loaded == ["b"]
    assert engines.loads == ["a", "b", "a", "b"]
    assert engines.most == 1
    async with running(engine=Engines(), catalog=catalog, cpu_lanes=2, memory_budget_mb=0.001) as app:
        status, body = await app.post(GENERATIONS, model="a", **SMALL)
        assert (status, body["error"]["code"]) == (507, "insufficient_memory")


async def test_webui_means_the_newest(running: RunningApp) -> None:
    """AUTOMATIC1111's progress and interrupt know one job only: the newest of theirs that runs."""
    wanted = {"prompt": "a", "width": 64, "height": 64}
    async with running(engine=NeverAnswers, cpu_lanes=2) as app:
        await idle(app)
        first = asyncio.create_task(app.post("/sdapi/v1/txt2img", **wanted, steps=8))
        await eventually("one runs", lambda: running_jobs(app, 1))
        second = asyncio.create_task(app.post("/sdapi/v1/txt2img", **wanted, steps=9))
        await eventually("both run", lambda: running_jobs(app, 2))
        _, progress = await app.get("/sdapi/v1/progress")
        assert progress["state"]["sampling_steps"] == 9
        await app.post("/sdapi/v1/interrupt")
        assert (await second)[0] == 200
        assert await running_jobs(app, 1)
        await app.post("/sdapi/v1/interrupt")
        assert (await first)[0] == 200


async def running_jobs(app: App, count: int) -> bool:
    return len(app.scheduler.running) == count


async def test_the_end_reaches_every_lane(running: RunningApp) -> None:
    """Even one whose load misses its cancellation."""
    engines = Engines(MissesCancel)
    async with running(engine=engines, cpu_lanes=2, waits=Waits(cancel_again=0.1)) as app:

        async def loading() -> bool:
            return "loading" in [status for _, status in await lanes(app)]

        await eventually("loading", loading)
        await asyncio.wait_for(app.app.cleanup(), 10)
    assert engines.loaded == []


@pytest.mark.posix
async def test_real_lanes_make_equal_pictures(
    serve: Callable[..., ServerProcess], session: aiohttp.ClientSession
) -> None:
    """Two workers at once, each on cores of its own: a seed gives the bytes that one lane gives."""
    body = {**SMALL, "steps": 40, "seed": 7, "response_format": "b64_json"}

    async def make(server: ServerProcess) -> tuple[bytes, str]:
        async with session.post(server.url + GENERATIONS, json=body) as answer:
            made = await answer.json()
        async with session.get(f"{server.url}/v1/jobs/{made['id']}") as answer:
            return base64.b64decode(made["data"][0]["b64_json"]), (await answer.json())["lane"]

    one = serve("--grace", "1")
    one.wait_until_ready()
    expected, lane = await make(one)
    assert lane == "auto"
    one.stop()
    two = serve("--grace", "1", "--cpu-lanes", "2")
    two.wait_until_ready()
    made = await asyncio.gather(make(two), make(two))
    assert [data == expected for data, _ in made] == [True, True]
    assert {name for _, name in made} == {"cpu:0", "cpu:1"}
    workers = psutil.Process(two.process.pid).children()
    cores = [tuple(worker.cpu_affinity()) for worker in workers]
    assert len(cores) == 2
    assert len(set(cores)) == min(2, len(os.sched_getaffinity(0)))


async def test_jobs_wait_for_all_lanes_together(running: RunningApp) -> None:
    """What comes before a waiting job is shared by the lanes in its ETA."""
    kind = gate()
    kind.opened.set()
    async with running(engine=kind, cpu_lanes=2) as app:
        assert (await app.post(GENERATIONS, **SMALL))[0] == 200
        kind.opened.clear()
        await idle(app)
        started = [await start_job(app) for _ in range(2)]
        waiting = [await start_job(app, status="queued") for _ in range(2)]
        alone = app.scheduler.eta(app.scheduler.jobs[started[0][1]["id"]])
        assert alone
        last = await job_in_state(app, "queued", waiting[1][1]["id"])
        assert last["eta"] == pytest.approx(alone * (3 / 2 + 1), rel=0.01)
        kind.opened.set()
        assert {(await task)[0] for task, _ in (*started, *waiting)} == {200}
