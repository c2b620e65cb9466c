"""Several models: which are in memory, who makes room for whom, and whose job comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
import yaml

from gguf_imagegen.vocabulary.engine import LoadSpec
from gguf_imagegen.vocabulary.events import EngineEvent
from tests.api.client import GENERATIONS, SMALL, eventually, start_job
from tests.conftest import App, RunningApp, ServerProcess
from tests.fake_engines import NeverAnswers, NeverLoads, QuickEngine, SlowEngine

NAMES = ("a", "b", "c")


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """A catalog in which the tiny model has three names."""
    files = {"model": "tiny-random.gguf", "taesd": "tiny-random-tae.gguf"}
    fields = {"family": "ovis-image", "files": files, "defaults": {"cfg_scale": 1.0}}
    path = tmp_path / "three.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "models": dict.fromkeys(NAMES, fields)}))
    return path


class Engines:
    """Makes engines, and knows what they loaded and which of them live."""

    def __init__(self, kind: type[QuickEngine] = QuickEngine) -> None:
        self.loads: list[str] = []
        self.most = 0
        self._made: list[tuple[str, QuickEngine]] = []
        outer = self

        class Noted(kind):  # type: ignore[valid-type, misc]
            async def load(self, model: LoadSpec) -> AsyncIterator[EngineEvent]:
                outer.loads.append(model.name)
                outer._made.append((model.name, self))
                async for event in super().load(model):
                    yield event
                outer.most = max(outer.most, len(outer.loaded))

        self.kind = Noted

    def __call__(self) -> QuickEngine:
        engine: QuickEngine = self.kind()
        return engine

    @property
    def loaded(self) -> list[str]:
        return [name for name, engine in self._made if engine.alive]


async def make(app: App, *models: str) -> None:
    for model in models:
        status, body = await app.post(GENERATIONS, model=model, **SMALL)
        assert (status, body.get("model")) == (200, model), body


async def order_of(app: App, models: str) -> str:
    """Queue jobs for these models behind one that is running, and tell the order in which they ended."""
    task, first = await start_job(app, model=models[0])
    tasks = []
    for number, model in enumerate(models[1:], start=1):
        tasks.append(asyncio.create_task(app.post(GENERATIONS, model=model, **SMALL)))

        async def queued(wanted: int = number) -> bool:
            return app.scheduler.waiting == wanted

        await eventually("the job is queued", queued)
    async with app.session.delete(f"{app.url}/v1/jobs/{first['id']}"):
        pass
    await asyncio.gather(task, *tasks)
    done = sorted(app.scheduler.jobs.values(), key=lambda job: job.times[-1])
    return "".join(job.plan.entry.id for job in done[1:])


async def test_models_stay_while_there_is_room(running: RunningApp, catalog: Path) -> None:
    """With room for two, going back and forth between two loads each once."""
    engines = Engines()
    async with running(engine=engines, catalog=catalog, model="a", max_loaded=2) as app:
        await make(app, "a", "b", "a", "b", "a")
        assert (await app.get("/health"))[1]["models"] == ["a", "b"]
        _, body = await app.get("/v1/models")
        states = {model["id"]: model["meta"]["state"] for model in body["data"]}
        assert (states["a"], states["b"], states["c"]) == ("loaded", "loaded", "ready")
    assert engines.loads == ["a", "b"]


async def test_every_wish_is_granted(running: RunningApp, catalog: Path) -> None:
    """Two requests to load in a row: both models are loaded. Of several about one model the last counts."""
    engines = Engines()
    async with running(engine=engines, catalog=catalog, model="a", max_loaded=3) as app:
        await make(app, "a")
        for wish in ("b/load", "c/load", "b/unload", "b/load", "a/unload"):
            assert (await app.post(f"/v1/models/{wish}"))[0] == 202

        async def granted() -> bool:
            return sorted(engines.loaded) == ["b", "c"]

        await eventually("b and c are loaded, a is not", granted)
        await make(app, "b", "c")
    assert set(engines.loads) == {"a", "b", "c"}  # b twice if it was unloaded while it loaded


async def test_jobs_of_one_decoder_go_together(running: RunningApp, catalog: Path) -> None:
    """Jobs that alternate between the decoders of a model load it twice, and not each time."""

    class Gate(QuickEngine):
        opened = asyncio.Event()

        async def at_step(self, step: int) -> None:
            await self.opened.wait()

    engines = Engines(Gate)
    async with running(engine=engines, catalog=catalog, model="a", swap_after=600) as app:
        body = {**SMALL, "model": "a"}
        tasks = []
        for number in range(8):
            decoder = ("full", "tiny")[number % 2]
            tasks.append(asyncio.create_task(app.post(GENERATIONS, **body, decoder=decoder)))

            async def there(wanted: int = number) -> bool:
                return bool(app.scheduler.running) and app.scheduler.waiting == wanted

            await eventually("the job is there", there)
        Gate.opened.set()
        assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * 8
    assert engines.loads == ["a", "a"]


async def test_one_model_makes_room_for_the_next(running: RunningApp, catalog: Path) -> None:
    """With room for one there is never a second in memory, not even during a swap."""
    engines = Engines()
    async with running(engine=engines, catalog=catalog, model="a") as app:
        await make(app, "a", "b", "a")
    assert engines.loads == ["a", "b", "a"]
    assert engines.most == 1


async def test_the_least_recently_used_leaves(running: RunningApp, catalog: Path) -> None:
    """The third model takes the place of the one that was used longest ago."""
    engines = Engines()
    async with running(engine=engines, catalog=catalog, model="a", max_loaded=2) as app:
        await make(app, "a", "b", "a", "c")
        assert sorted(engines.loaded) == ["a", "c"]


async def test_a_budget_counts_the_files(running: RunningApp, catalog: Path, model_dir: Path) -> None:
    """Models leave when the files of all loaded ones together are more than the budget."""
    one = sum(path.stat().st_size for path in model_dir.glob("tiny-random*")) / 1e6
    engines = Engines()
    settings = {"max_loaded": 16, "memory_budget_mb": 2.5 * one}
    async with running(engine=engines, catalog=catalog, model="a", **settings) as app:
        await make(app, "a", "b")
        assert engines.loaded == ["a", "b"]
        await make(app, "c")
        assert engines.loaded == ["b", "c"]


async def test_the_budget_is_for_one_model_too(running: RunningApp, catalog: Path) -> None:
    """A model that is larger than the budget by itself is refused, with the flag's name."""
    engines = Engines()
    async with running(engine=engines, catalog=catalog, model="a", memory_budget_mb=0.001) as app:
        status, body = await app.post(GENERATIONS, model="a", **SMALL)
    assert (status, body["error"]["code"]) == (507, "insufficient_memory"), body
    assert "--memory-budget-mb allows 1 kB" in body["error"]["message"]
    assert engines.loads == []


async def test_each_model_has_its_own_idle_time(running: RunningApp, catalog: Path) -> None:
    """`keep_alive` of a request frees that request's model, and no other."""
    engines = Engines()
    async with running(engine=engines, catalog=catalog, model="a", max_loaded=2, keep_alive=-1) as app:
        await make(app, "a")
        assert (await app.post(GENERATIONS, model="b", keep_alive=0, **SMALL))[0] == 200

        async def alone() -> bool:
            return engines.loaded == ["a"]

        await eventually("b is unloaded", alone)


async def test_unloading_names_one(running: RunningApp, catalog: Path) -> None:
    """The unload route frees the model that it names."""
    engines = Engines()
    async with running(engine=engines, catalog=catalog, model="a", max_loaded=2) as app:
        await make(app, "a", "b")
        assert (await app.post("/v1/models/a/unload"))[0] == 202

        async def alone() -> bool:
            return engines.loaded == ["b"]

        await eventually("a is unloaded", alone)


async def test_a_running_job_keeps_its_model(running: RunningApp, catalog: Path) -> None:
    """While a job runs, a wish to load or to unload waits for its end."""
    engines = Engines(NeverAnswers)
    async with running(engine=engines, catalog=catalog, model="a") as app:
        task, job = await start_job(app, model="a")
        assert (await app.post("/v1/models/b/load"))[0] == 202
        assert (await app.post("/v1/models/a/unload"))[0] == 202
        assert (await app.get(f"/v1/jobs/{job['id']}"))[1]["status"] == "running"
        assert engines.loaded == ["a"]
        async with app.session.delete(f"{app.url}/v1/jobs/{job['id']}"):
            pass
        await task

        async def swapped() -> bool:
            return engines.loaded == ["b"]

        await eventually("b is loaded", swapped)


async def test_the_last_wish_counts(running: RunningApp, catalog: Path) -> None:
    """Of loading and unloading during a job, what was asked for last is what happens after it."""
    engines = Engines(SlowEngine)
    async with running(engine=engines, catalog=catalog, model="b", max_loaded=2) as app:
        task, _ = await start_job(app, model="a")
        for model, action in (
            ("a", "unload"),
            ("b", "unload"),
            ("c", "load"),
            ("c", "unload"),
            ("b", "load"),
        ):
            assert (await app.post(f"/v1/models/{model}/{action}"))[0] == 202
        assert (await task)[0] == 200

        async def settled() -> bool:
            return engines.loaded == ["b"]

        await eventually("b alone is loaded", settled)
    assert engines.loads == ["b", "a"]


@pytest.mark.parametrize(("swap_after", "order"), [(60, "aabb"), (0, "baba")])
async def test_jobs_of_the_loaded_model_go_first(
    running: RunningApp, catalog: Path, swap_after: float, order: str
) -> None:
    """Jobs for the model in memory overtake for so long as the setting says, so that one swap does."""
    engines = iter([NeverAnswers, *[QuickEngine] * 9])
    async with running(
        engine=lambda: next(engines)(), catalog=catalog, model="a", swap_after=swap_after
    ) as app:
        # The cancelled job's engine ends with it, so the first job that waits decides what is loaded.
        found = await order_of(app, "a" + ("abab" if swap_after else "baba"))
    assert found == order


async def test_nobody_starves(running: RunningApp, catalog: Path) -> None:
    """A job for another model gets its turn while jobs for the loaded one keep coming."""
    async with running(engine=QuickEngine, catalog=catalog, model="a", swap_after=0.3) as app:
        await make(app, "a")
        ended = asyncio.Event()

        async def flood() -> None:
            while not ended.is_set():
                await make(app, "a")

        floods = [asyncio.create_task(flood()) for _ in range(4)]
        await asyncio.wait_for(make(app, "b"), 30)
        ended.set()
        await asyncio.gather(*floods)


async def test_a_crash_takes_one_model(running: RunningApp, catalog: Path) -> None:
    """When one engine dies under a job, the other model stays in memory."""
    engines = Engines(NeverAnswers)
    async with running(engine=engines, catalog=catalog, model="a", max_loaded=2) as app:

        async def loaded() -> bool:
            return engines.loaded == ["a"]

        await eventually("a is loaded", loaded)
        task, job = await start_job(app, model="b")
        async with app.session.delete(f"{app.url}/v1/jobs/{job['id']}"):
            pass
        await task
        assert engines.loaded == ["a"]


async def test_two_real_models_at_once(
    serve: Callable[..., ServerProcess], catalog: Path, session: aiohttp.ClientSession
) -> None:
    """Two workers hold two real models; a request goes to the one it names without a load."""
    server = serve("--catalog", str(catalog), "--model", "a", "--max-loaded", "2", "--grace", "1")
    for model in ("a", "b", "a"):
        body = {**SMALL, "model": model}
        async with session.post(server.url + GENERATIONS, json=body) as answer:
            assert (answer.status, (await answer.json())["model"]) == (200, model)
    async with session.get(f"{server.url}/health") as answer:
        assert (await answer.json())["models"] == ["a", "b"]
    async with session.get(f"{server.url}/metrics") as answer:
        assert "imagegen_models_loaded 2.0" in await answer.text()


# -- giving all back ----------------------------------------------------------------------------------


async def test_all_memory_is_given_back(running: RunningApp, catalog: Path) -> None:
    """One request unloads every model, however long it is to be kept; the next job loads its own again."""
    engines = Engines()
    async with running(engine=engines, catalog=catalog, model="a", max_loaded=2, keep_alive=-1) as app:
        await make(app, "a", "b")
        assert await app.post("/v1/models/yield") == (
            200,
            {"object": "models.yield", "unloaded": ["b", "a"]},
        )
        assert engines.loaded == []
        assert await app.post("/v1/models/yield") == (200, {"object": "models.yield", "unloaded": []})
        await make(app, "a")
        assert engines.loads == ["a", "b", "a"]


async def test_running_jobs_finish_before_memory_is_given_back(running: RunningApp, catalog: Path) -> None:
    """A 409 to who does not wait; who does gets the answer after the job, which made its picture."""
    engines = Engines(SlowEngine)
    async with running(engine=engines, catalog=catalog, model="a") as app:
        job = asyncio.create_task(app.post(GENERATIONS, **SMALL))

        async def runs() -> bool:
            return bool(app.scheduler.running)

        await eventually("the job runs", runs)
        status, body = await app.post("/v1/models/yield?wait=0")
        assert (status, body["error"]["code"]) == (409, "model_busy"), body
        assert "1 jobs run or wait" in body["error"]["message"]
        assert not job.done()
        assert (await app.post("/v1/models/yield"))[1]["unloaded"] == ["a"]
        assert (await job)[0] == 200
        assert engines.loaded == []


async def test_a_load_that_no_job_waits_for_is_given_up(running: RunningApp, catalog: Path) -> None:
    """Such as that of the default model at the start."""
    async with running(engine=NeverLoads, catalog=catalog, model="a") as app:

        async def loads() -> bool:
            return app.service.pool.loading is not None

        await eventually("the model is being loaded", loads)
        assert (await app.post("/v1/models/yield"))[0] == 200
        assert app.service.pool.loading is None


@pytest.mark.parametrize("wait", ["-1", "601", "x", "1.5"])
async def test_how_long_to_wait_is_checked(running: RunningApp, wait: str) -> None:
    """In words, with its range."""
    async with running(engine=QuickEngine) as app:
        status, body = await app.post(f"/v1/models/yield?wait={wait}")
        assert (status, body["error"]["param"]) == (400, "wait")
        assert "from 0 to 600" in body["error"]["message"]
