"""A server that goes on with the state folder of a killed one: what clients find there."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from gguf_imagegen.jobs import state
from gguf_imagegen.jobs.journal import Journal
from gguf_imagegen.jobs.ledger import Ledger
from gguf_imagegen.jobs.spool import Spool
from gguf_imagegen.jobs.state import State
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Generate
from gguf_imagegen.vocabulary.events import EngineEvent
from tests.api.client import GENERATIONS, SMALL, eventually, job_in_state
from tests.conftest import App, RunningApp
from tests.fake_engines import NeverAnswers, QuickEngine
from tests.survival import b64, png

LASTING: dict[str, Any] = {"on_disconnect": "continue"}
SDK = {"x-stainless-lang": "python", "x-stainless-retry-count": "0"}
AGAIN = {**SDK, "x-stainless-retry-count": "1"}


class Halts(QuickEngine):
    """Makes the first picture of each job, and says no more."""

    index = 0

    async def generate(self, spec: Generate) -> AsyncIterator[EngineEvent]:
        async for event in super().generate(spec):
            self.index = getattr(event, "index", self.index)
            yield event

    async def at_step(self, step: int) -> None:
        if self.index:
            await self.pause(None)


class Counts(QuickEngine):
    """Notes the numbers of the pictures that it makes."""

    made: list[int]

    async def generate(self, spec: Generate) -> AsyncIterator[EngineEvent]:
        self.made += range(spec.first, spec.n)
        async for event in super().generate(spec):
            yield event


class Kept:
    """A state folder, and copies of it as a kill at that moment leaves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._copies = 0

    @property
    def now(self) -> Path:
        self._copies += 1
        copy = self.folder.with_name(f"{self.folder.name}-{self._copies}")
        shutil.copytree(self.folder, copy, ignore=shutil.ignore_patterns("server.lock", "*-shm"))
        return copy


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "state")


async def send(
    app: App, headers: dict[str, str] | None = None, path: str = GENERATIONS, **fields: Any
) -> Any:
    """Status and body of an answer."""
    async with app.session.post(app.url + path, json={**SMALL, **fields}, headers=headers) as answer:
        return answer.status, await answer.json()


async def begin(
    app: App, headers: dict[str, str] | None = None, **fields: Any
) -> tuple[asyncio.Task[Any], str]:
    """A client that waits, and its job."""
    await app.service.knows_the_past.wait()
    before = set(app.scheduler.jobs)
    task = asyncio.create_task(send(app, headers, **fields))

    async def there() -> str | None:
        return next((job for job in app.scheduler.jobs if job not in before), None)

    return task, await eventually("the job is there", there)


async def gone(*clients: asyncio.Task[Any]) -> None:
    """Their server went under them."""
    await asyncio.gather(*clients, return_exceptions=True)


async def test_everything_is_there_again(running: RunningApp, kept: Kept) -> None:
    """The ended job as it was, picture and all; the one that ran and the one that waited are made."""
    async with running(engine=QuickEngine, state_dir=kept.folder) as app:
        _, done = await send(app, seed=1, n=2)
        async with app.session.post(app.url + GENERATIONS, json={**SMALL, "n": 1000}) as refused:
            assert refused.status == 400
        _, before = await app.get(f"/v1/jobs/{done['id']}")
    async with running(engine=NeverAnswers, state_dir=kept.folder) as app:
        ran, running_id = await begin(app, seed=2, **LASTING)
        await job_in_state(app, "running", running_id)
        waited, waiting_id = await begin(app, seed=3, **LASTING)
        crashed = kept.now
    await gone(ran, waited)
    async with running(engine=QuickEngine, state_dir=crashed) as app:
        _, after = await app.get(f"/v1/jobs/{done['id']}")
        assert _bare(after) == _bare(before)
        for item in done["data"]:
            async with app.session.get(app.url + "/v1" + item["url"].split("/v1")[1]) as picture:
                assert b64(await picture.read()) == item["b64_json"]
        for job_id, seed in ((running_id, 2), (waiting_id, 3)):
            job = await job_in_state(app, "succeeded", job_id)
            assert job["data"][0]["seed"] == seed
        _, listed = await app.get("/v1/jobs")
        assert [job["id"] for job in listed["data"]] == [waiting_id, running_id, done["id"]]


async def test_jobs_that_changed_places(running: RunningApp, kept: Kept) -> None:
    """Wait in their new order, and were taken when they were."""
    async with running(engine=NeverAnswers, state_dir=kept.folder) as app:
        begun = [await begin(app, seed=seed, **LASTING) for seed in range(4)]
        jobs = [job for _, job in begun]
        await job_in_state(app, "running", jobs[0])
        before = {job: (await app.get(f"/v1/jobs/{job}"))[1]["created"] for job in jobs}
        async with app.session.post(f"{app.url}/v1/jobs/{jobs[3]}", json={"before": jobs[1]}) as moved:
            assert (await moved.json())["position"] == 1
        begun.append(await begin(app, seed=4, **LASTING))  # is stored after all that came before
        crashed = kept.now
    await gone(*(client for client, _ in begun))
    async with running(engine=NeverAnswers, state_dir=crashed) as app:
        await app.service.knows_the_past.wait()
        assert [job.id for job in app.scheduler.queue][-4:] == [jobs[3], jobs[1], jobs[2], begun[4][1]]
        assert {job: int(app.scheduler.jobs[job].created) for job in jobs} == before


async def test_a_job_of_an_earlier_run_expires_in_words(running: RunningApp, kept: Kept) -> None:
    """sd.cpp's clients get a 410 for it, and a 404 for what never was."""
    async with running(engine=QuickEngine, state_dir=kept.folder) as app:
        _, done = await send(app)
    async with running(engine=QuickEngine, state_dir=kept.folder, job_ttl=0.01) as app:
        await app.service.knows_the_past.wait()
        app.scheduler.sweep()
        assert done["id"] not in app.scheduler.jobs
        told = [await app.get(f"/sdcpp/v1/jobs/{each}") for each in (done["id"], "job_nothing")]
        assert [(status, body["code"]) for status, body in told] == [
            (410, "job_expired"), (404, "job_not_found"),
        ]  # fmt: skip


async def test_a_job_that_expired_before_the_restart(running: RunningApp, kept: Kept) -> None:
    """Is known to have been, by its id alone."""
    with state.folder(Settings(state_dir=kept.folder)) as opened:
        assert opened is not None
        async with running(engine=QuickEngine, kept=opened, job_ttl=0.01) as app:
            _, done = await send(app, path="/sdcpp/v1/img_gen")
            await job_in_state(app, "succeeded", done["id"])

            async def forgotten() -> bool:
                app.scheduler.sweep()
                return done["id"] not in app.scheduler.jobs

            await eventually("it is past its time", forgotten)
            await opened.ledger.sweep(app.scheduler.jobs)
            gone = await app.get(f"/sdcpp/v1/jobs/{done['id']}")
    async with running(engine=QuickEngine, state_dir=kept.folder) as app:
        assert await app.get(f"/sdcpp/v1/jobs/{done['id']}") == gone
        assert (gone[0], gone[1]["code"]) == (410, "job_expired")
        assert (await app.get(f"/v1/jobs/{done['id']}"))[0] == 404


def _bare(job: dict[str, Any]) -> dict[str, Any]:
    """Without the address of the server, fractions of a second, and the last step, which is not stored."""
    data = [{**item, "url": item["url"].split("/v1")[1]} for item in job["data"]]
    times = {name: int(job[name] / 10) for name in ("started", "ended")}
    return {**job, "data": data, **times, "step": None}


async def test_only_missing_pictures_are_made(running: RunningApp, kept: Kept) -> None:
    """Of a set the finished picture keeps its address and comes once; ids rise over the restart."""
    async with running(engine=Halts, state_dir=kept.folder) as app:
        task, job_id = await begin(app, seed=5, n=3, **LASTING)

        async def one() -> Any:
            _, job = await app.get(f"/v1/jobs/{job_id}")
            return job["data"]

        (made,) = await eventually("one picture is made", one)
        old = list(app.scheduler.jobs[job_id].ids)
        crashed = kept.now
    await gone(task)
    made_now: list[int] = []
    counts = type("Own", (Counts,), {"made": made_now})
    async with running(engine=counts, state_dir=crashed) as app:
        job = await job_in_state(app, "succeeded", job_id)
        assert [item["seed"] for item in job["data"]] == [5, 6, 7]
        assert job["data"][0]["url"].split("/v1")[1] == made["url"].split("/v1")[1]
        assert made_now == [1, 2]
        ids = app.scheduler.jobs[job_id].ids
        assert ids == sorted(set(ids))
        assert min(id for id in ids if id >= 1_000_000) > max(old)
        async with app.session.get(
            f"{app.url}/v1/jobs/{job_id}/events", headers={"Last-Event-ID": str(old[-1])}
        ) as answer:
            text = await answer.text()
        assert [f'"index":{n}' in text.replace(" ", "") for n in (1, 2)] == [True, True]
        assert text.count("event: image_generation.completed") == 2


async def test_pixels_are_those_of_the_ticket(running: RunningApp, kept: Kept, tmp_path: Path) -> None:
    """Inputs come from the spool, and defaults that have changed since change nothing."""
    fields = {"image": b64(png(64, 64)), "prompt": "edited", "seed": 9, "steps": 2, **LASTING}
    async with running(engine=NeverAnswers, state_dir=kept.folder) as app:
        task, job_id = await begin(app, **fields)
        await job_in_state(app, "running", job_id)
        plan = app.scheduler.jobs[job_id].plan
        (spooled,) = (kept.folder / "spool").iterdir()
        assert spooled.stat().st_mode & 0o077 == 0
        crashed = kept.now
    await gone(task)
    async with running(engine=NeverAnswers, state_dir=crashed) as app:
        await job_in_state(app, "running", job_id)

        async def complete() -> bool:
            return app.scheduler.jobs[job_id].plan == plan

        await eventually("the plan is what it was", complete)


async def test_a_client_that_repeats_itself_gets_its_job(running: RunningApp, kept: Kept) -> None:
    """An SDK's retry by its body, and an Idempotency-Key, which fits no other request."""
    key = {"Idempotency-Key": "k1"}
    async with running(engine=NeverAnswers, state_dir=kept.folder) as app:
        first, sdk = await begin(app, SDK, prompt="one")
        second, keyed = await begin(app, key, prompt="two")
        crashed = kept.now
    await gone(first, second)
    async with running(engine=QuickEngine, state_dir=crashed, return_time=0.3) as app:
        status, body = await send(app, AGAIN, prompt="one")
        assert (status, body["id"]) == (200, sdk)
        status, body = await send(app, key, prompt="two")
        assert (status, body["id"]) == (200, keyed)
        assert (await send(app, key, prompt="three"))[0] == 400
        assert len(app.scheduler.jobs) == 2


async def test_nobody_comes_back(running: RunningApp, kept: Kept) -> None:
    """A job whose client is gone is cancelled in words; not one that is lasting, or that is looked after."""
    async with running(engine=NeverAnswers, state_dir=kept.folder) as app:
        clients = [await begin(app), await begin(app), await begin(app, **LASTING), await begin(app)]
        ran, polled, lasting, lost = [job_id for _, job_id in clients]
        crashed = kept.now
    await gone(*(task for task, _ in clients))
    async with running(engine=NeverAnswers, state_dir=crashed, return_time=0.5) as app:
        await app.get(f"/v1/jobs/{polled}")
        job = app.scheduler.jobs[lost]
        await asyncio.wait_for(job.wait(), 60)
        assert "did not come back" in str(job.error)
        await asyncio.wait_for(app.scheduler.jobs[ran].wait(), 60)
        assert not app.scheduler.jobs[polled].ended
        assert not app.scheduler.jobs[lasting].ended
        again = Kept(crashed).now
    async with running(engine=NeverAnswers, state_dir=again) as app:
        assert (await app.get(f"/v1/jobs/{lost}"))[1]["error"]["code"] == "cancelled"


async def test_an_orderly_end_leaves_what_is_lasting(running: RunningApp, kept: Kept) -> None:
    """At SIGTERM clients hear `shutting_down`; the next server does the lasting job, and no other."""
    async with running(engine=NeverAnswers, state_dir=kept.folder) as app:
        clients = [await begin(app, **LASTING), await begin(app)]
        await app.scheduler.drain(0)
        answers = [await task for task, _ in clients]
    assert [(status, body["error"]["code"]) for status, body in answers] == [(503, "shutting_down")] * 2
    async with running(engine=QuickEngine, state_dir=kept.folder) as app:
        await job_in_state(app, "succeeded", clients[0][1])
        _, other = await app.get(f"/v1/jobs/{clients[1][1]}")
        assert (other["status"], other["error"]["code"]) == ("failed", "shutting_down")


async def test_names_that_clients_gave(running: RunningApp, kept: Kept) -> None:
    """A task id of AUTOMATIC1111's and a request id of Xinference's."""
    async with running(engine=NeverAnswers, state_dir=kept.folder) as app:
        first, _ = await begin(app, path="/sdapi/v1/txt2img", force_task_id="task(1)")
        second, _ = await begin(app, request_id="mine", **LASTING)
        crashed = kept.now
    await gone(first, second)
    async with running(engine=NeverAnswers, state_dir=crashed) as app:
        async with app.session.post(app.url + "/internal/progress", json={"id_task": "task(1)"}) as answer:
            told = await answer.json()
        assert told["active"] or told["queued"]
        assert (await app.get("/v1/requests/mine/progress"))[0] == 200


async def test_owners_are_known(running: RunningApp, kept: Kept, tmp_path: Path) -> None:
    """Jobs and pictures are their callers' after a restart, even when the job is forgotten."""
    callers = tmp_path / "callers.yaml"
    names = [{"name": name, "key": name * 3, "admin": name == "root"} for name in ("ann", "bob", "root")]
    callers.write_text(yaml.safe_dump(names))
    callers.chmod(0o600)
    settings: dict[str, Any] = {"callers": callers, "engine": QuickEngine}

    def key(name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {name * 3}"}

    async with running(state_dir=kept.folder, **settings) as app:
        _, made = await send(app, key("ann"))
        crashed = kept.now
    async with running(state_dir=crashed, **settings) as app:
        for name, count in (("ann", 1), ("bob", 0), ("root", 1)):
            _, images = await app.get("/v1/images", **key(name))
            _, jobs = await app.get("/v1/jobs", **key(name))
            assert (len(images["data"]), len(jobs["data"])) == (count, count)
    async with running(state_dir=crashed, job_ttl=0.001, **settings) as app:
        app.scheduler.sweep()
        assert app.scheduler.jobs == {}
        assert len((await app.get("/v1/images", **key("ann")))[1]["data"]) == 1
        assert (await app.get("/v1/images", **key("bob")))[1]["data"] == []
    assert made["id"]


async def test_what_cannot_be_done_any_more(running: RunningApp, kept: Kept) -> None:
    """A ticket that cannot be read, a model that is gone, and a lost input: each job ends in words."""
    async with running(engine=NeverAnswers, state_dir=kept.folder) as app:
        clients = [await begin(app, prompt=name, **LASTING) for name in ("unreadable", "moved")]
        clients.append(await begin(app, prompt="lost", image=b64(png(64, 64)), **LASTING))
        unreadable, moved, lost = [job_id for _, job_id in clients]
        crashed = kept.now
    await gone(*(task for task, _ in clients))
    with closing(sqlite3.connect(crashed / "journal.sqlite")) as db, db:
        db.execute("UPDATE tickets SET ticket = 'x' WHERE job = ?", (unreadable,))
        db.execute(
            "UPDATE tickets SET ticket = replace(ticket, '\"tiny-random\"', '\"other-model\"') WHERE job = ?",
            (moved,),
        )
    for file in (crashed / "spool").iterdir():
        file.unlink()
    async with running(engine=QuickEngine, state_dir=crashed) as app:
        words = {}
        for job_id in (unreadable, moved, lost):
            _, job = await app.get(f"/v1/jobs/{job_id}")
            assert job["status"] == "failed"
            words[job_id] = job["error"]["message"]
        assert "cannot read the stored job" in words[unreadable]
        assert "there is no model 'other-model'" in words[moved]
        assert "is lost from the state folder" in words[lost]
        assert (await app.get(f"/v1/jobs/{moved}"))[1]["model"] == "other-model"
        assert (await send(app))[0] == 200


async def test_requests_wait_for_the_past(running: RunningApp, kept: Kept) -> None:
    """Who asks how the server is gets an answer at once; all others when the journal is read."""
    async with running(engine=QuickEngine, state_dir=kept.folder) as app:
        _, made = await send(app)
    with (
        state.folder(Settings(state_dir=kept.folder)) as opened,
        closing(sqlite3.connect(kept.folder / "journal.sqlite")) as db,
    ):
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        async with running(engine=QuickEngine, kept=opened) as app:
            asked = asyncio.create_task(app.get(f"/v1/jobs/{made['id']}"))
            assert (await app.get("/livez"))[0] == 200
            async with app.session.get(app.url + "/metrics") as answer:
                assert answer.status == 200
            assert not asked.done()
            db.execute("ROLLBACK")
            db.close()
            assert (await asked)[1]["status"] == "succeeded"


@pytest.mark.parametrize(
    ("path", "fields", "find"),
    [
        (GENERATIONS, {}, lambda body: body["error"]["code"]),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}]},
            lambda body: body["error"]["code"],
        ),
        ("/sdapi/v1/txt2img", {}, lambda body: body["error"]["code"]),
        ("/sdcpp/v1/img_gen", {}, lambda body: body["code"]),
        ("/v1-openai/images/generations", {}, lambda body: body["error"]["reason"]),
    ],
)
async def test_a_full_disk(
    running: RunningApp, kept: Kept, path: str, fields: dict[str, Any], find: Callable[[Any], str]
) -> None:
    """Nothing is taken that would be lost in a crash; what was taken ends well, and so does all after it."""
    kept.folder.mkdir()
    journal = Journal(kept.folder / "journal.sqlite", most_pages=24)
    journal.open()
    ledger = Ledger(journal, Spool(kept.folder / "spool"))
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(
            running(
                engine=QuickEngine, kept=State(kept.folder / "pictures", ledger), job_ttl=0.001, max_queue=100
            )
        )
        refused = None
        for _ in range(60):
            status, body = await send(app, path=path, **fields)
            if status == 507:
                refused = body
                break
            assert status in (200, 202)
        assert refused is not None
        assert find(refused) == "storage_failed"
        assert "--ephemeral" in str(refused)
        await eventually("all jobs have ended", lambda: _all_ended(app))
        app.scheduler.sweep()
        await ledger.sweep(())
        assert (await send(app, path=path, **fields))[0] in (200, 202)


async def _all_ended(app: App) -> bool:
    return all(job.ended for job in app.scheduler.jobs.values())


async def test_inputs_go_when_nobody_needs_them(running: RunningApp, kept: Kept) -> None:
    """Those of an ended job; and those of a client that left while they were stored."""
    async with running(engine=QuickEngine, state_dir=kept.folder) as app:
        assert (await send(app, image=b64(png(64, 64)), prompt="a"))[0] == 200
        assert len(list((kept.folder / "spool").iterdir())) == 1
    (kept.folder / "spool" / ("0" * 64)).write_bytes(b"left behind")
    async with running(engine=QuickEngine, state_dir=kept.folder) as app:
        assert (await app.get("/v1/jobs"))[0] == 200
        assert list((kept.folder / "spool").iterdir()) == []
