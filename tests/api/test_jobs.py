"""Jobs: looking at them, following and cancelling them, what outlives a client and what does not."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.api.client import (
    DONE,
    GENERATIONS,
    SMALL,
    eventually,
    get_stream,
    job_in_state,
    picture,
    post_stream,
    start_job,
)
from tests.conftest import DEADLINE, App, RunningApp, ServerProcess
from tests.fake_engines import FailsGeneration, NeverAnswers, NeverLoads, QuickEngine, SlowEngine


async def cancel(app: App, job_id: str) -> Any:
    async with app.session.delete(f"{app.url}/v1/jobs/{job_id}") as answer:
        assert answer.status == 200
        return await answer.json()


# -- looking ------------------------------------------------------------------------------------------


async def test_jobs_are_listed_newest_first(running: RunningApp) -> None:
    """The list has every job of every outcome, and each is the object that its own address gives."""
    async with running(engine=QuickEngine) as app:
        assert await app.get("/v1/jobs") == (200, {"object": "list", "data": [], "has_more": False})
        ids = [(await app.post(GENERATIONS, **SMALL))[1]["id"] for _ in range(3)]
        _, body = await app.get("/v1/jobs")
        assert [job["id"] for job in body["data"]] == ids[::-1]
        for job in body["data"]:
            assert await app.get(f"/v1/jobs/{job['id']}") == (200, job)


async def test_ids_begin_with_the_servers_name(running: RunningApp) -> None:
    """Those of jobs, sets and their items, where it has one; under them everything is found as always."""
    async with running(engine=QuickEngine, server_name="east") as app:
        made = (await app.post(GENERATIONS, **SMALL))[1]["id"]
        assert (await app.get(f"/v1/jobs/{made}"))[1]["status"] == "succeeded"
        _, several = await app.post("/v1/images/sets", size="64x64", steps=1, prompts=["a", "b"])
        assert re.fullmatch(r"set_east-[0-9a-f]{24}", several["id"])

        async def all_taken() -> bool:
            return len(app.scheduler.jobs) == 3

        await eventually("both pictures of the set are jobs", all_taken)
        assert all(re.fullmatch(r"job_east-[0-9a-f]{24}", id) for id in app.scheduler.jobs)
    async with running(engine=QuickEngine) as app:
        assert re.fullmatch(r"job_[0-9a-f]{24}", (await app.post(GENERATIONS, **SMALL))[1]["id"])


async def test_jobs_come_in_pages(running: RunningApp) -> None:
    """Fifty unless told otherwise; `before` goes on after a job, also after the last one."""
    async with running(engine=QuickEngine) as app:
        ids = [(await app.post(GENERATIONS, **SMALL, seed=seed))[1]["id"] for seed in range(53)][::-1]

        async def page(query: str) -> tuple[list[str], bool]:
            status, body = await app.get(f"/v1/jobs{query}")
            assert status == 200
            return [job["id"] for job in body["data"]], body["has_more"]

        assert await page("") == (ids[:50], True)
        assert await page(f"?before={ids[49]}") == (ids[50:], False)
        assert await page("?limit=53") == (ids, False)
        assert await page(f"?limit=2&before={ids[3]}") == (ids[4:6], True)
        assert await page(f"?before={ids[-1]}") == ([], False)
        for query, status, code in (
            ("limit=0", 400, "invalid_request"), ("limit=201", 400, "invalid_request"),
            ("limit=x", 400, "invalid_request"), ("before=job_x", 404, "job_not_found"),
        ):  # fmt: skip
            answer = await app.get(f"/v1/jobs?{query}")
            assert (answer[0], answer[1]["error"]["code"]) == (status, code), query


@pytest.mark.parametrize("path", [GENERATIONS, "/sdapi/v1/txt2img"])
async def test_warnings_are_few(running: RunningApp, path: str) -> None:
    """A request with thousands of things to say about it does not make every list of jobs long."""
    odd: dict[str, Any] = {f"odd{number}": 1 for number in range(3000)}
    if path != GENERATIONS:
        odd = {"alwayson_scripts": odd}
    async with running(engine=QuickEngine) as app:
        status, body = await app.post(path, **SMALL, **odd)
        assert status == 200
        assert (len(body["warnings"]), body["warnings"][-1]) == (21, "… and 2980 more")
        if path == GENERATIONS:
            (job,) = (await app.get("/v1/jobs"))[1]["data"]
            assert job["warnings"] == body["warnings"]


async def test_finished_job_holds_its_result(server: ServerProcess, session: aiohttp.ClientSession) -> None:
    """A job tells what was asked, what was measured, and where its images are."""
    async with session.post(server.url + GENERATIONS, json={**SMALL, "seed": 6, "n": 2, "x": 1}) as answer:
        made = await answer.json()
    async with session.get(f"{server.url}/v1/jobs/{made['id']}") as answer:
        job = await answer.json()
    assert (job["object"], job["operation"], job["status"]) == ("job", "generation", "succeeded")
    assert (job["progress"], job["n"], job["position"], job["error"]) == (100, 2, None, None)
    assert job["created"] <= job["started"] + 1 <= job["ended"] + 1
    assert job["parameters"].items() >= {"prompt": "a cat", "seed": 6, "steps": 2, "width": 64}.items()
    assert job["warnings"] == made["warnings"] == ["unknown field 'x' was ignored"]
    assert [item["url"] for item in job["data"]] == [item["url"] for item in made["data"]]
    assert job["usage"] == made["usage"]
    async with session.get(job["data"][1]["url"]) as answer:
        assert picture(await answer.read()).size == (64, 64)


async def test_failed_job_holds_its_error(running: RunningApp) -> None:
    """The error that the waiting client got can be read later from the job."""
    async with running(engine=FailsGeneration) as app:
        status, body = await app.post(GENERATIONS, **SMALL)
        assert (status, body["error"]["code"]) == (500, "generation_failed")
        job = await job_in_state(app, "failed")
    assert job["error"] == body["error"]
    assert job["progress"] < 100


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/events"), ("DELETE", "")])
async def test_unknown_jobs_are_not_found(running: RunningApp, method: str, path: str) -> None:
    """An id that never was is a 404 with its own code on all job routes."""
    async with (
        running(engine=QuickEngine) as app,
        app.session.request(method, f"{app.url}/v1/jobs/job_nothing{path}") as answer,
    ):
        assert answer.status == 404
        assert (await answer.json())["error"]["code"] == "job_not_found"


# -- following ----------------------------------------------------------------------------------------


async def test_events_are_replayed_from_any_point(
    server: ServerProcess, session: aiohttp.ClientSession
) -> None:
    """`Last-Event-ID: k` gives exactly what came after k, however often and from wherever it is asked."""
    fields: dict[str, Any] = {"n": 2, "stream_options": {"preview": True}}
    streamed = await post_stream(session, server.url + GENERATIONS, **fields)
    url = f"{server.url}/v1/jobs/{streamed.headers['X-Job-Id']}/events"
    whole = (await get_stream(session, url)).events
    assert whole[-1].data == DONE
    assert [event.id for event in whole[:-1]] == [str(number) for number in range(len(whole) - 1)]
    assert [event.event for event in whole[:2]] == ["job.queued", "job.started"]
    assert whole[-2].event == "job.succeeded"
    assert all(event.data["type"] == event.event for event in whole[:-1])
    images = [event.item["b64_json"] for event in whole if event.event == "image_generation.completed"]
    assert images == [item["b64_json"] for item in streamed.items if item["finish_reason"]]
    assert [event.event for event in whole].count("image_generation.partial_image") >= 2
    for last in range(len(whole) - 2):
        headers = {"Last-Event-ID": str(last)}
        assert (await get_stream(session, url, **headers)).events == whole[last + 1 :]
    assert (await get_stream(session, f"{url}?last_event_id=1")).events == whole[2:]


@pytest.mark.parametrize("last", ["x", "1.5", "²", "9" * 40])
async def test_nonsense_to_replay_from_is_refused(running: RunningApp, last: str) -> None:
    """A Last-Event-ID that cannot be one is a 400."""
    async with running(engine=QuickEngine) as app:
        _, body = await app.post(GENERATIONS, **SMALL)
        status, answer = await app.get(f"/v1/jobs/{body['id']}/events?last_event_id={last}")
    assert (status, answer["error"]["code"]) == (400, "invalid_request")


async def test_events_of_a_running_job_continue(running: RunningApp) -> None:
    """Whoever comes in the middle gets the history and then what follows, up to the end."""
    async with running(engine=SlowEngine) as app:
        task, job = await start_job(app, steps=2)
        stream = await get_stream(app.session, f"{app.url}/v1/jobs/{job['id']}/events")
        await task
    assert [event.id for event in stream.events[:-1]] == [str(n) for n in range(len(stream.events) - 1)]
    assert stream.events[-2].event == "job.succeeded"


async def test_leaving_the_events_cancels_nothing(running: RunningApp) -> None:
    """A watcher who goes away leaves the job running to its success."""
    async with running(engine=SlowEngine) as app:
        task, job = await start_job(app, steps=2)
        async with app.session.get(f"{app.url}/v1/jobs/{job['id']}/events") as answer:
            assert await answer.content.readline()
        status, _ = await task
        assert status == 200


async def test_places_in_the_queue_are_told(running: RunningApp) -> None:
    """Waiting jobs have a position; when one ahead goes, whoever follows another hears that it moved up.

    The place at the beginning is the job's history, a changed one is told without a number.
    """
    async with running(engine=NeverAnswers) as app:
        tasks, jobs = zip(
            *[
                await start_job(app),
                await start_job(app, "queued"),
                await start_job(app, "queued"),
            ],
            strict=True,
        )
        assert [job["position"] for job in jobs] == [None, 1, 2]
        assert (await app.get("/health"))[1]["queue"] == 2
        events = f"{app.url}/v1/jobs/{jobs[2]['id']}/events"
        async with app.session.get(events) as answer:
            await answer.content.readuntil(b'"position":2')
            await cancel(app, jobs[1]["id"])
            assert (await app.get(f"/v1/jobs/{jobs[2]['id']}"))[1]["position"] == 1
            told = await asyncio.wait_for(answer.content.readuntil(b'"position":1'), DEADLINE)
            assert b"event: job.queued" in told.split(b"\n\n")[-1]
            assert b"id:" not in told.split(b"\n\n")[-1]
        await cancel(app, jobs[2]["id"])
        stream = await get_stream(app.session, events)
        assert [e.data["position"] for e in stream.events if e.event == "job.queued"] == [2]
        await cancel(app, jobs[0]["id"])
        assert [(await task)[0] for task in tasks] == [499, 499, 499]


async def test_waits_are_estimated_from_what_was_measured(running: RunningApp) -> None:
    """After one job a queued one has an ETA, and the one behind it a longer one."""

    class Measured(NeverAnswers):
        """Silent from the second job on."""

        jobs = 0

        async def at_step(self, step: int) -> None:
            if step == 1:
                type(self).jobs += 1
            if self.jobs > 1:
                await super().at_step(step)

    async with running(engine=Measured) as app:
        assert (await app.post(GENERATIONS, **SMALL))[0] == 200
        running_task, running_job = await start_job(app)
        second_task, second = await start_job(app, "queued")
        third_task, third = await start_job(app, "queued")
        assert 0 < running_job["eta"] < second["eta"] < third["eta"]
        stream_of = f"{app.url}/v1/jobs/{third['id']}/events"
        for job in (third, second, running_job):
            await cancel(app, job["id"])
        events = (await get_stream(app.session, stream_of)).events
        assert events[0].event == "job.queued"
        assert events[0].data["eta"] == pytest.approx(third["eta"], rel=0.5)
        await asyncio.gather(running_task, second_task, third_task)


# -- cancelling ---------------------------------------------------------------------------------------


async def test_cancelling_in_every_state(running: RunningApp) -> None:
    """DELETE ends a queued and a running job, changes nothing on an ended one, and may come twice."""
    async with running(engine=NeverAnswers) as app:
        first_task, first = await start_job(app)
        second_task, second = await start_job(app, "queued")
        for job, task in ((second, second_task), (first, first_task)):
            cancelled = await cancel(app, job["id"])
            assert cancelled["status"] == "cancelled"
            assert cancelled["error"]["code"] == "cancelled"
            status, body = await task
            assert (status, body["error"]["code"]) == (499, "cancelled")
            assert await cancel(app, job["id"]) == cancelled


async def test_cancelling_a_finished_job_keeps_it(running: RunningApp) -> None:
    """A job that succeeded stays so, with its images."""
    async with running(engine=QuickEngine) as app:
        _, body = await app.post(GENERATIONS, **SMALL)
        assert (await cancel(app, body["id"]))["status"] == "succeeded"
        async with app.session.get(body["data"][0]["url"]) as answer:
            assert answer.status == 200


async def test_after_a_cancel_the_next_job_works(
    server: ServerProcess, session: aiohttp.ClientSession
) -> None:
    """A running real generation ends at once, and the next one gets an engine again."""
    body = {"prompt": "a cat", "size": "512x512", "steps": 150, "stream": True}
    async with session.post(server.url + GENERATIONS, json=body) as answer:
        while b'"progressed_steps":1,' not in (line := await answer.content.readline()):
            assert line
        async with session.delete(f"{server.url}/v1/jobs/{answer.headers['X-Job-Id']}") as deleted:
            assert (await deleted.json())["status"] == "cancelled"
        assert b'"code":"cancelled"' in await answer.read()
    async with session.post(server.url + GENERATIONS, json=SMALL) as answer:
        assert answer.status == 200


async def test_cancelling_during_the_load_harms_nobody(running: RunningApp) -> None:
    """A job cancelled while its model loads ends; the server counts as healthy, not as failed."""
    engines = iter([QuickEngine, NeverLoads, QuickEngine])
    async with running(engine=lambda: next(engines)()) as app:
        assert (await app.post(GENERATIONS, **SMALL, keep_alive=0))[0] == 200

        async def unloaded() -> bool:
            return not app.service.pool.present

        await eventually("the first engine is gone", unloaded)
        task, job = await start_job(app)

        async def loading() -> bool:
            return app.service.pool.present

        await eventually("it loads", loading)
        assert (await cancel(app, job["id"]))["status"] == "cancelled"
        assert (await task)[0] == 499
        status, health = await app.get("/health")
        assert (status, health["status"], health["error"]) == (200, "ok", None)
        assert (await app.post(GENERATIONS, **SMALL))[0] == 200


# -- clients that leave -------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["running", "queued"])
async def test_client_that_stops_waiting_cancels_its_job(running: RunningApp, state: str) -> None:
    """Nobody waits for the answer any more: the job ends, running or queued."""
    async with running(engine=NeverAnswers) as app:
        held, first = await start_job(app)
        task, job = (held, first) if state == "running" else await start_job(app, "queued")
        task.cancel()
        gone = await job_in_state(app, "cancelled", job["id"])
        assert "the client left" in gone["error"]["message"]
        await cancel(app, first["id"])
        await asyncio.gather(held, task, return_exceptions=True)


async def test_client_that_leaves_a_stream_cancels_its_job(running: RunningApp) -> None:
    """The same for a stream that is closed in the middle."""
    async with running(engine=NeverAnswers, heartbeat=0.1) as app:
        async with app.session.post(app.url + GENERATIONS, json={**SMALL, "stream": True}) as answer:
            job_id = answer.headers["X-Job-Id"]
            await job_in_state(app, "running", job_id)
            answer.close()
        await job_in_state(app, "cancelled", job_id)


@pytest.mark.parametrize("stream", [False, True])
async def test_job_continues_without_its_client_on_demand(running: RunningApp, stream: bool) -> None:
    """With on_disconnect=continue the client may go; the images can be fetched later."""
    async with running(engine=SlowEngine) as app:
        task, job = await start_job(app, on_disconnect="continue", stream=stream)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        done = await job_in_state(app, "succeeded", job["id"])
        async with app.session.get(done["data"][0]["url"]) as answer:
            assert picture(await answer.read()).size == (64, 64)


# -- time ---------------------------------------------------------------------------------------------


async def test_results_and_jobs_expire(running: RunningApp, tmp_path: Path) -> None:
    """After the TTL neither image nor job can be read; in a folder of the user's own the image can."""
    async with running(engine=QuickEngine, job_ttl=0.5) as app:
        _, body = await app.post(GENERATIONS, **SMALL)
        url = body["data"][0]["url"]
        async with app.session.get(url) as answer:
            assert answer.status == 200

        async def image_gone() -> bool:
            async with app.session.get(url) as answer:
                return answer.status == 404

        async def job_gone() -> bool:
            app.scheduler.sweep()
            return (await app.get(f"/v1/jobs/{body['id']}"))[0] == 404

        await eventually("the image has expired", image_gone)
        await eventually("the job has expired", job_gone)
        assert (await app.get("/v1/jobs"))[1]["data"] == []
    async with running(engine=QuickEngine, job_ttl=0.01, output_dir=tmp_path) as app:
        _, body = await app.post(GENERATIONS, **SMALL)
        app.scheduler.sweep()
        async with app.session.get(body["data"][0]["url"]) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    "name", ["nothing.png", "..%2F..%2Fetc%2Fpasswd", "20260101-000000-" + "a" * 24 + ".png"]
)
async def test_unknown_image_names_are_not_found(running: RunningApp, name: str) -> None:
    """Only names that were given out lead to a file."""
    async with running(engine=QuickEngine) as app:
        status, body = await app.get(f"/v1/images/files/{name}")
    assert (status, body["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("where", ["settings", "request"])
async def test_idle_model_is_unloaded_and_comes_back(running: RunningApp, where: str) -> None:
    """After keep_alive without work the memory is freed; the next request loads the model again."""
    loads: list[QuickEngine] = []

    def engine() -> QuickEngine:
        loads.append(QuickEngine())
        return loads[-1]

    settings = {"keep_alive": 0.0} if where == "settings" else {}
    fields = {"keep_alive": 0} if where == "request" else {}
    async with running(engine=engine, **settings) as app:

        async def unloaded() -> bool:
            return not (await app.get("/health"))[1]["loaded"]

        counts = []
        for _ in range(3):
            assert (await app.post(GENERATIONS, **SMALL, **fields))[0] == 200
            await eventually("the model is unloaded", unloaded)
            counts.append(len(loads))
            assert not loads[-1].alive
            assert (await app.get("/health"))[0] == 200
    assert counts == [counts[0], counts[0] + 1, counts[0] + 2]


async def test_model_stays_while_keep_alive_lasts(running: RunningApp) -> None:
    """Without an end to keep_alive one load serves many requests."""
    loads: list[QuickEngine] = []

    def engine() -> QuickEngine:
        loads.append(QuickEngine())
        return loads[-1]

    async with running(engine=engine, keep_alive=-1) as app:
        for _ in range(3):
            assert (await app.post(GENERATIONS, **SMALL))[0] == 200
        assert (await app.get("/health"))[1]["loaded"]
    assert len(loads) == 1
