"""Health, liveness and metrics through every state of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gguf_imagegen.machine.levels import WORDS
from gguf_imagegen.vocabulary.engine import Engine
from gguf_imagegen.vocabulary.waits import Waits
from tests.api.client import GENERATIONS, SMALL, eventually, start_job
from tests.conftest import App, RunningApp
from tests.fake_engines import (
    CannotLoad,
    CrashesAtLoad,
    CrashesAtStep,
    FailsGeneration,
    MissesCancel,
    NeverAnswers,
    NeverLoads,
    QuickEngine,
)


async def health_is(app: App, status: str) -> tuple[int, Any]:
    """The answer of /health as soon as its status is this."""

    async def look() -> tuple[int, Any] | None:
        code, body = await app.get("/health")
        return (code, body) if body["status"] == status else None

    return await eventually(f"health is {status}", look)


async def metrics(app: App) -> dict[str, float]:
    """Every sample by name and labels."""
    async with app.session.get(f"{app.url}/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await answer.text()
    return {
        f"{sample.name}{sorted(value for key, value in sample.labels.items() if key != 'model')}": (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# -- health -------------------------------------------------------------------------------------------


async def test_health_of_a_ready_server(running: RunningApp) -> None:
    """200 with the model, what it runs on, and the queue."""
    async with running(engine=QuickEngine) as app:
        assert (await app.post(GENERATIONS, **SMALL))[0] == 200
        code, body = await health_is(app, "ok")
    assert code == 200
    assert body.items() >= {
        "ready": True, "model": "tiny-random", "loaded": True, "loading": None, "backend": "FAKE",
        "kernels": "", "build": None, "error": None, "queue": 0, "running": None,
    }.items()  # fmt: skip
    assert body["version"]


async def test_health_names_the_level_of_the_engine(
    running: RunningApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its wheel has several builds, and why that one was taken."""
    monkeypatch.setenv(WORDS, "x86-64-v3: the best for this CPU, 65 dB from the golden picture")
    async with running(engine=QuickEngine) as app:
        _, body = await app.get("/health")
    assert body["build"] == {
        "level": "x86-64-v3", "why": "the best for this CPU, 65 dB from the golden picture",
    }  # fmt: skip


async def test_health_while_loading(running: RunningApp) -> None:
    """503 with how far it is, while the process is alive."""
    async with running(engine=NeverLoads) as app:

        async def tensors_known() -> Any:
            code, body = await app.get("/health")
            return (code, body) if body["loading"] and body["loading"]["total"] else None

        code, body = await eventually("the load has begun", tensors_known)
        assert code == 503
        assert (body["status"], body["ready"], body["loaded"]) == ("loading", False, False)
        assert body["loading"] == {"done": 0, "total": 2}
        assert await app.get("/livez") == (200, {"status": "alive"})


@pytest.mark.parametrize(
    ("engine", "code"), [(CannotLoad, "model_load_failed"), (CrashesAtLoad, "worker_crashed")]
)
async def test_health_after_a_failed_load(
    running: RunningApp, engine: Callable[[], Engine], code: str
) -> None:
    """503 with the reason; a load by hand that works makes it healthy again."""
    engines = iter([engine, QuickEngine])
    async with running(engine=lambda: next(engines)()) as app:
        status, body = await health_is(app, "error")
        assert (status, body["ready"], body["error"]["code"]) == (503, False, code)
        assert await app.get("/livez") == (200, {"status": "alive"})
        assert (await app.post("/v1/models/tiny-random/load"))[0] == 202
        assert (await health_is(app, "ok"))[0] == 200


async def test_health_while_working(running: RunningApp) -> None:
    """A busy server is healthy, and names its job and how many wait."""
    async with running(engine=NeverAnswers) as app:
        first, job = await start_job(app)
        second, _ = await start_job(app, "queued")
        code, body = await app.get("/health")
        assert (code, body["status"], body["running"], body["queue"]) == (200, "ok", job["id"], 1)
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


async def test_server_that_shuts_down(running: RunningApp) -> None:
    """While it drains, health is 503 and new work is refused with advice to retry."""
    async with running(engine=QuickEngine) as app:
        await app.scheduler.drain(0)
        assert (await app.get("/health"))[0] == 503
        assert (await app.get("/health"))[1]["status"] == "shutting_down"
        async with app.session.post(app.url + GENERATIONS, json=SMALL) as answer:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.headers["x-should-retry"] == "true"
            assert (await answer.json())["error"]["code"] == "shutting_down"


async def test_a_cancellation_that_is_lost(running: RunningApp) -> None:
    """The server ends all the same."""
    async with running(engine=MissesCancel, waits=Waits(cancel_again=0.1)) as app:

        async def loading() -> bool:
            return bool((await app.get("/health"))[1]["loading"])

        await eventually("loading", loading)
        await asyncio.wait_for(app.app.cleanup(), 10)


async def test_engine_failure_leaves_the_server_working(running: RunningApp) -> None:
    """A crash in one job is told to its client; the next job gets a new engine."""
    engines = iter([CrashesAtStep, QuickEngine])
    async with running(engine=lambda: next(engines)()) as app:
        status, body = await app.post(GENERATIONS, **SMALL)
        assert (status, body["error"]["code"]) == (500, "worker_crashed")
        assert (await app.get("/health"))[0] == 200
        assert (await app.post(GENERATIONS, **SMALL))[0] == 200


async def test_failed_generation_keeps_the_model(running: RunningApp) -> None:
    """A failure that the engine survives costs no reload; its answer names the job, too."""
    async with running(engine=FailsGeneration) as app:
        for _ in range(2):
            async with app.session.post(app.url + GENERATIONS, json=SMALL) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (500, "generation_failed")
            _, job = await app.get(f"/v1/jobs/{answer.headers['X-Job-Id']}")
            assert job["status"] == "failed"
        assert (await app.get("/health"))[1]["loaded"]
        assert not [name for name in await metrics(app) if name.startswith("imagegen_worker_ends_total")]


async def test_engines_that_keep_crashing_get_a_pause(running: RunningApp) -> None:
    """After three crashes in a row nothing is started for a while; the answer says for how long."""
    async with running(engine=CrashesAtStep) as app:
        for _ in range(3):
            assert (await app.post(GENERATIONS, **SMALL))[0] == 500
        async with app.session.post(app.url + GENERATIONS, json=SMALL) as answer:
            body = await answer.json()
            assert 0 < int(answer.headers["Retry-After"]) <= 15
    assert (answer.status, body["error"]["code"]) == (503, "engine_paused")
    assert "pause" in body["error"]["message"]


# -- metrics ------------------------------------------------------------------------------------------


async def test_metrics_of_an_idle_server(running: RunningApp) -> None:
    """Gauges stand at their values from the start, so that a scraper sees them before the first job."""
    async with running(engine=QuickEngine) as app:
        await health_is(app, "ok")

        async def loaded() -> bool:
            return (await metrics(app))["imagegen_models_loaded[]"] == 1

        await eventually("the model is loaded", loaded)
        samples = await metrics(app)
    assert samples["imagegen_queue_depth[]"] == 0
    assert samples["imagegen_jobs_running[]"] == 0
    assert samples["imagegen_worker_restarts_total[]"] == 0


async def test_metrics_count_what_was_done(running: RunningApp) -> None:
    """Two images of two steps: their jobs, seconds per step and seconds per phase."""
    async with running(engine=QuickEngine) as app:
        assert (await app.post(GENERATIONS, **SMALL, n=2))[0] == 200
        samples = await metrics(app)
    assert samples["imagegen_jobs_total['succeeded']"] == 1
    assert samples["imagegen_seconds_per_step_count[]"] == 2
    assert samples["imagegen_seconds_per_step_sum[]"] == pytest.approx(0.02)
    for phase, seconds in {"conditioning": 0.002, "sampling": 0.02, "decoding": 0.003}.items():
        assert samples[f"imagegen_phase_seconds_count['{phase}']"] == 2
        assert samples[f"imagegen_phase_seconds_sum['{phase}']"] == pytest.approx(2 * seconds)


async def test_metrics_count_failures_and_restarts(running: RunningApp) -> None:
    """A crash and a cancel count as outcomes of jobs and as engines to be started again."""
    engines = iter([CrashesAtStep, NeverAnswers, QuickEngine])
    async with running(engine=lambda: next(engines)()) as app:
        await app.post(GENERATIONS, **SMALL)
        task, job = await start_job(app)

        async def loaded() -> bool:
            return bool(app.service.pool.entries)

        await eventually("it has its engine", loaded)
        waiting, _ = await start_job(app, "queued")
        busy = await metrics(app)
        assert (busy["imagegen_queue_depth[]"], busy["imagegen_jobs_running[]"]) == (1, 1)
        await app.session.delete(f"{app.url}/v1/jobs/{job['id']}")
        await asyncio.gather(task, waiting)
        samples = await metrics(app)
    assert samples["imagegen_jobs_total['failed']"] == 1
    assert samples["imagegen_jobs_total['cancelled']"] == 1
    assert samples["imagegen_jobs_total['succeeded']"] == 1
    assert samples["imagegen_worker_restarts_total[]"] == 2
    assert samples["imagegen_worker_ends_total['crashed']"] == 1
    assert samples["imagegen_worker_ends_total['cancelled']"] == 1
