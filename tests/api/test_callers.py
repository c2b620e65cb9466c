"""Several callers on one server: each has its own jobs and images, bounds and turns; admins have all."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gguf_imagegen.api.callers import Callers
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.callers import CallersError
from tests.api.client import GENERATIONS, SMALL, eventually
from tests.conftest import App, RunningApp, ServerProcess
from tests.fake_engines import NeverAnswers, QuickEngine

ANN, BOB, ROOT = "ann-key-1f3a", "bob-key-77c2", "root-key-9d0e"
ROOT_HASH = hashlib.sha256(ROOT.encode()).hexdigest()
FILE = f"""
- {{name: ann, key: {ANN}}}
- {{name: bob, key: {BOB}}}
- {{name: root, sha256: {ROOT_HASH}, admin: true}}
"""
BOUNDED = f"""
- {{name: ann, key: {ANN}, bounds: {{jobs: 2, images: 2, megapixels: 0.005, steps: 5}}}}
- {{name: root, sha256: {ROOT_HASH}, admin: true}}
"""
BASIC = f"Basic {base64.b64encode(f'x:{ANN}'.encode()).decode()}"
TXT2IMG = {"prompt": "x", "steps": 2, "width": 64, "height": 64}


@pytest.fixture
def callers(tmp_path: Path) -> Path:
    return written(tmp_path, FILE)


def written(folder: Path, text: str) -> Path:
    path = folder / "callers.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return path


class As:
    """One caller's requests."""

    def __init__(self, app: App, key: str) -> None:
        self._app = app
        self.headers = {"Authorization": f"Bearer {key}"}

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        sent = {**self.headers, **headers}
        async with self._app.session.request(method, self._app.url + path, json=body, headers=sent) as answer:
            text = await answer.text()
            try:
                return answer.status, json.loads(text)
            except ValueError:
                return answer.status, text

    async def make(self, **fields: Any) -> tuple[int, Any]:
        return await self.ask("POST", GENERATIONS, {**SMALL, **fields})

    async def begin(self, path: str = GENERATIONS, **fields: Any) -> str:
        """The id of a job that nobody waits for."""
        body = {**(TXT2IMG if path.startswith("/sdapi") else SMALL), **fields}
        status, job = await self.ask("POST", path, body, Prefer="respond-async")
        assert status == 202, job
        return str(job["id"])

    async def jobs(self) -> set[str]:
        return {job["id"] for job in (await self.ask("GET", "/v1/jobs"))[1]["data"]}

    async def reaches(self, job_id: str, status: str) -> Any:
        async def look() -> Any:
            job = (await self.ask("GET", f"/v1/jobs/{job_id}"))[1]
            return job if job["status"] == status else None

        return await eventually(f"{job_id} is {status}", look)


def people(app: App) -> tuple[As, As, As]:
    return As(app, ANN), As(app, BOB), As(app, ROOT)


# -- jobs and images ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs/{id}"),
        ("GET", "/v1/jobs/{id}/events"),
        ("GET", "/v1/jobs?before={id}"),
        ("DELETE", "/v1/jobs/{id}"),
        ("GET", "/sdcpp/v1/jobs/{id}"),
        ("POST", "/sdcpp/v1/jobs/{id}/cancel"),
    ],
)
async def test_a_job_of_somebody_else_is_not_there(
    running: RunningApp, callers: Path, method: str, path: str
) -> None:
    """The answer is that for an id which never was, and the job goes on; an admin sees it."""
    async with running(engine=NeverAnswers, callers=callers) as app:
        ann, bob, root = people(app)
        job = await ann.begin()
        unknown = "job_000000000000000000000000"
        status, told = await bob.ask(method, path.format(id=job))
        assert status == 404
        never = await bob.ask(method, path.format(id=unknown))
        assert (status, json.loads(json.dumps(told).replace(job, unknown))) == never
        assert (await ann.reaches(job, "running"))["caller"] == "ann"
        assert await bob.jobs() == set()
        assert await ann.jobs() == await root.jobs() == {job}
        status, body = await root.ask("DELETE", f"/v1/jobs/{job}")
        assert (status, body["status"]) == (200, "cancelled")


async def test_priority(running: RunningApp, callers: Path) -> None:
    """Anyone may let others go first, an admin may go first; a job that waits can be moved, no other."""
    async with running(engine=NeverAnswers, callers=callers) as app:
        ann, bob, root = people(app)
        runs = await ann.begin()
        await ann.reaches(runs, "running")
        for refused in (
            await ann.make(priority=1),
            await ann.ask("POST", f"/v1/jobs/{runs}", {"priority": 1}),
        ):
            assert (refused[0], refused[1]["error"]["code"]) == (403, "forbidden")
        jobs = [
            await ann.begin(priority=-1),
            await ann.begin(),
            await bob.begin(),
            await root.begin(priority=1),
        ]

        async def order() -> list[int]:
            told = [(await root.ask("GET", f"/v1/jobs/{job}"))[1] for job in jobs]
            return [jobs.index(job["id"]) for job in sorted(told, key=lambda job: job["position"])]

        assert await order() == [3, 2, 1, 0]
        assert (await root.ask("GET", f"/v1/jobs/{jobs[3]}"))[1]["priority"] == 1
        status, moved = await ann.ask("POST", f"/v1/jobs/{jobs[1]}", {"priority": -2})
        assert (status, moved["priority"], moved["position"]) == (200, -2, 4)
        assert await order() == [3, 2, 0, 1]
        status, same = await root.ask("POST", f"/v1/jobs/{runs}", {"priority": 5})
        assert (status, same["priority"], same["status"]) == (200, 0, "running")
        for wrong in ({"priority": 11}, {"priority": "soon"}, {}, {"priority": 1, "lane": "cpu"}):
            status, body = await root.ask("POST", f"/v1/jobs/{jobs[0]}", wrong)
            assert (status, body["error"]["code"]) == (400, "invalid_request")
        assert (await bob.ask("POST", f"/v1/jobs/{jobs[0]}", {"priority": -1}))[0] == 404


async def test_a_job_goes_before_another(running: RunningApp, callers: Path) -> None:
    """One of the same caller that waits; those of others stay where they are, and cannot be named."""
    async with running(engine=NeverAnswers, callers=callers) as app:
        ann, bob, _ = people(app)
        runs = await ann.begin()
        await ann.reaches(runs, "running")
        jobs = [await each.begin() for each in (ann, bob, ann, ann)]
        low = await ann.begin(priority=-1)
        places = [
            (await each.ask("GET", f"/v1/jobs/{job}"))[1]["position"]
            for each, job in zip((ann, bob, ann, ann), jobs, strict=True)
        ]
        status, moved = await ann.ask("POST", f"/v1/jobs/{jobs[3]}", {"before": jobs[0]})
        assert (status, moved["position"]) == (200, places[0])
        assert (await bob.ask("GET", f"/v1/jobs/{jobs[1]}"))[1]["position"] == places[1]
        assert (await ann.ask("GET", f"/v1/jobs/{jobs[0]}"))[1]["position"] == places[2]
        status, same = await ann.ask("POST", f"/v1/jobs/{runs}", {"before": jobs[0]})
        assert (status, same["status"]) == (200, "running")
        assert (await ann.ask("POST", f"/v1/jobs/{jobs[0]}", {"before": jobs[1]}))[0] == 404
        status, body = await ann.ask("POST", f"/v1/jobs/{jobs[0]}", {"before": low})
        assert (status, body["error"]["param"]) == (400, "before")


async def test_an_expired_job_of_somebody_else_never_was(running: RunningApp, callers: Path) -> None:
    """sd.cpp's 410 is for those whose job it was."""
    async with running(engine=QuickEngine, callers=callers, job_ttl=0.01) as app:
        ann, bob, root = people(app)
        _, job = await ann.ask("POST", "/sdcpp/v1/img_gen", {"prompt": "x", "width": 64, "height": 64})

        async def forgotten() -> bool:
            app.scheduler.sweep()
            return job["id"] not in app.scheduler.jobs

        await eventually("it is forgotten", forgotten)
        told = [(await each.ask("GET", f"/sdcpp/v1/jobs/{job['id']}"))[0] for each in (ann, bob, root)]
        assert told == [410, 404, 410]


async def test_everybody_follows_own_jobs(running: RunningApp, callers: Path) -> None:
    """/v1/events tells of those that the caller may see, and of nobody else's place in the queue."""
    async with running(engine=NeverAnswers, callers=callers) as app:
        ann, bob, root = people(app)
        first, second = await ann.begin(), await bob.begin()
        await ann.reaches(first, "running")
        third = await ann.begin()
        seen = []
        for each in (ann, bob, root):
            async with app.session.get(app.url + "/v1/events", headers=each.headers) as answer:
                text = ""
                while '"type":"queue"' not in text.replace('": "', '":"'):
                    text += (await asyncio.wait_for(answer.content.readany(), 20)).decode()
            seen.append({job for job in (first, second, third) if job in text})
        assert seen == [{first, third}, {second}, {first, second, third}]


async def test_images_are_their_callers(running: RunningApp, callers: Path, tmp_path: Path) -> None:
    """Listed and deleted by their caller and by admins; whoever knows the address may read."""
    async with running(engine=QuickEngine, callers=callers, output_dir=tmp_path / "out") as app:
        ann, bob, root = people(app)
        url = (await ann.make())[1]["data"][0]["url"].removeprefix(app.url)
        name = url.rsplit("/", 1)[1]
        counts = [len((await each.ask("GET", "/v1/images"))[1]["data"]) for each in (ann, bob, root)]
        assert counts == [1, 0, 1]
        told = await bob.ask("DELETE", url)
        assert told[0] == 404
        assert told == await bob.ask("DELETE", url.replace(name, f"{name[:-6]}x.png"))
        assert (await app.session.get(app.url + url)).status == 200
        assert (await ann.ask("DELETE", url))[0] == 200
        again = (await bob.make())[1]["data"][0]["url"].removeprefix(app.url)
        assert (await root.ask("DELETE", again))[0] == 200


async def test_images_of_an_earlier_run_are_for_admins(
    running: RunningApp, callers: Path, tmp_path: Path
) -> None:
    """Nothing says any more whose they are."""
    for count in (0, 1):
        async with running(engine=QuickEngine, callers=callers, output_dir=tmp_path / "out") as app:
            ann, _, root = people(app)
            assert len((await root.ask("GET", "/v1/images"))[1]["data"]) == count
            assert (await ann.ask("GET", "/v1/images"))[1]["data"] == []
            await ann.make()


async def test_names_of_requests_are_per_caller(running: RunningApp, callers: Path) -> None:
    """Xinference's: two may use one name, and nobody finds or aborts another's."""
    async with running(engine=NeverAnswers, callers=callers) as app:
        ann, bob, _ = people(app)
        first = await ann.begin(request_id="mine")
        assert (await bob.ask("GET", "/v1/requests/mine/progress"))[0] == 400
        abort = "/v1/models/tiny-random/requests/{}/abort"
        assert (await bob.ask("POST", abort.format("mine")))[1] == {"msg": "NOT_FOUND"}
        assert (await bob.ask("POST", abort.format(first)))[1] == {"msg": "NOT_FOUND"}
        second = await bob.begin(request_id="mine")
        assert (await bob.ask("POST", abort.format("mine")))[1] == {"msg": "DONE"}
        assert (await bob.reaches(second, "cancelled"))["caller"] == "bob"
        await ann.reaches(first, "running")
        assert (await ann.ask("POST", abort.format("mine")))[1] == {"msg": "DONE"}


@pytest.mark.parametrize("repeats", [{"Idempotency-Key": "k-1"}, {"x-stainless-retry-count": "1"}])
async def test_retries_join_own_jobs_only(
    running: RunningApp, callers: Path, repeats: dict[str, str]
) -> None:
    """The same key and body of another caller is another job; with another body it is no conflict."""
    async with running(engine=QuickEngine, callers=callers) as app:
        ann, bob, _ = people(app)
        made = [(await each.ask("POST", GENERATIONS, SMALL, **repeats))[1]["id"] for each in (ann, bob, ann)]
        assert made[0] == made[2] != made[1]
        assert (await bob.ask("POST", GENERATIONS, {**SMALL, "n": 2}, **{"Idempotency-Key": "k-2"}))[0] == 200
        assert (await ann.ask("POST", GENERATIONS, SMALL, **{"Idempotency-Key": "k-2"}))[0] == 200


# -- AUTOMATIC1111 ------------------------------------------------------------------------------------


async def test_interrupt_and_progress_are_of_own_jobs(running: RunningApp, callers: Path) -> None:
    """Of whatever dialect; an admin's interrupt ends no job of others either."""
    async with running(engine=NeverAnswers, callers=callers) as app:
        ann, bob, root = people(app)
        job = await ann.begin()
        await ann.reaches(job, "running")
        waiting = await bob.begin("/sdapi/v1/txt2img", force_task_id="task(bob)")
        for each in (bob, root):
            for path in ("interrupt", "skip"):
                assert (await each.ask("POST", f"/sdapi/v1/{path}"))[0] == 200
        await ann.reaches(job, "running")
        counts = [await current(each) for each in (ann, bob, root)]
        assert counts == [job, "task(bob)", None]
        assert (await ann.ask("POST", "/sdapi/v1/interrupt"))[0] == 200
        await ann.reaches(job, "cancelled")
        await bob.reaches(waiting, "running")


async def current(caller: As, query: str = "") -> Any:
    return (await caller.ask("GET", f"/sdapi/v1/progress{query}"))[1]["current_task"]


async def test_a_task_is_followed_by_its_name(running: RunningApp, callers: Path) -> None:
    """`force_task_id`, by /internal/progress and /sdapi/v1/progress; to others it is unknown."""
    async with running(engine=NeverAnswers, callers=callers) as app:
        ann, bob, _ = people(app)
        first = await ann.begin("/sdapi/v1/txt2img", force_task_id="task(1)")
        await ann.begin("/sdapi/v1/txt2img", force_task_id="task(2)")
        await ann.reaches(first, "running")

        async def state(caller: As, name: str) -> tuple[bool, bool, bool]:
            _, body = await caller.ask("POST", "/internal/progress", {"id_task": name})
            return body["active"], body["queued"], body["completed"]

        assert await state(ann, "task(1)") == (True, False, False)
        assert await state(ann, "task(2)") == (False, True, False)
        assert await state(bob, "task(1)") == (False, False, False)
        assert await current(ann, "?id_task=task(2)") == "task(2)"
        assert await current(bob, "?id_task=task(2)") is None
        await ann.ask("POST", "/sdapi/v1/interrupt")
        await ann.reaches(first, "cancelled")
        assert await state(ann, "task(1)") == (False, False, True)


async def test_a_preview_is_sent_once(running: RunningApp) -> None:
    """/internal/progress leaves out the one that the client has."""

    class Stuck(QuickEngine):
        async def at_step(self, step: int) -> None:
            if step == 2:
                await self.pause(None)

    async with running(engine=Stuck) as app:
        begun = asyncio.create_task(app.post("/sdapi/v1/txt2img", **TXT2IMG, force_task_id="t"))

        async def preview() -> Any:
            _, body = await app.post("/internal/progress", id_task="t")
            return body if body["live_preview"] else None

        body = await eventually("there is a preview", preview)
        assert base64.b64decode(body["live_preview"].removeprefix("data:image/png;base64,"))
        _, later = await app.post("/internal/progress", id_task="t", id_live_preview=body["id_live_preview"])
        assert later["live_preview"] is None
        await app.post("/sdapi/v1/interrupt")
        assert (await begun)[0] == 200


async def test_without_keys_own_jobs_are_those_of_this_dialect(running: RunningApp) -> None:
    """An interrupt of AUTOMATIC1111's does not end what came by OpenAI's routes."""
    async with running(engine=NeverAnswers) as app:
        other = asyncio.create_task(app.post(GENERATIONS, **SMALL))

        async def runs() -> bool:
            return bool(app.scheduler.running)

        await eventually("it runs", runs)
        assert (await app.get("/sdapi/v1/progress"))[1]["state"]["job_count"] == 0
        await app.post("/sdapi/v1/interrupt")
        (job,) = app.scheduler.jobs.values()
        assert job.status == "running"
        assert (await app.session.delete(f"{app.url}/v1/jobs/{job.id}")).status == 200
        assert (await other)[0] == 499


# -- rights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/models/tiny-random/load", None),
        ("POST", "/v1/models/tiny-random/unload", None),
        ("POST", "/v1/models/yield", None),
        ("POST", "/v1/models/pull", {"model": "embedded", "stream": False}),
        ("DELETE", "/v1/models/pull/tiny-random", None),
        ("POST", "/v1/models/convert", {"model": "embedded", "type": "q8_0", "stream": False}),
        ("DELETE", "/v1/models/convert/tiny-random", None),
        ("DELETE", "/v1/models/tiny-random", None),
        ("DELETE", "/v1/models/tiny-random?files=true", None),
        ("POST", "/sdapi/v1/options", {"sd_model_checkpoint": "embedded"}),
        ("POST", "/sdapi/v1/unload-checkpoint", {}),
        ("POST", "/sdapi/v1/reload-checkpoint", {}),
        ("GET", "/metrics", None),
        ("GET", "/v1/logs", None),
    ],
)
async def test_models_are_managed_by_admins(
    running: RunningApp, callers: Path, method: str, path: str, body: Any
) -> None:
    """Others get a 403 in words; an admin does not."""
    async with running(engine=QuickEngine, callers=callers) as app:
        ann, _, root = people(app)
        status, told = await ann.ask(method, path, body)
        assert (status, told["error"]["code"], told["detail"]) == (403, "forbidden", told["error"]["message"])
        assert "needs an admin's key" in told["detail"]
        assert (await root.ask(method, path, body))[0] != 403


async def test_the_default_model_stays(running: RunningApp, callers: Path) -> None:
    """A request that would leave its model as the default makes its picture, with a warning."""
    keep = {"sd_model_checkpoint": "embedded"}
    fields = {**TXT2IMG, "override_settings": keep, "override_settings_restore_afterwards": False}
    async with running(engine=QuickEngine, callers=callers) as app:
        ann, _, root = people(app)
        status, body = await ann.ask("POST", "/sdapi/v1/txt2img", fields)
        assert status == 200
        assert any("the default model stays" in each for each in body["warnings"])
        assert app.service.default_model == "tiny-random"
        assert (await ann.ask("POST", "/sdapi/v1/options", {"samples_format": "png"}))[0] == 200
        await root.ask("POST", "/sdapi/v1/txt2img", fields)
        assert app.service.default_model != "tiny-random"


async def test_who_one_is(running: RunningApp, callers: Path, tmp_path: Path) -> None:
    """/v1/me, with rights and bounds; without keys everybody is one admin."""
    async with running(engine=QuickEngine, callers=callers) as app:
        told = [(await each.ask("GET", "/v1/me"))[1] for each in people(app)]
        assert [(each["name"], each["admin"]) for each in told] == [
            ("ann", False),
            ("bob", False),
            ("root", True),
        ]
    async with running(engine=QuickEngine) as app:
        none = {"jobs": None, "images": None, "megapixels": None, "steps": None}
        everybody = {"object": "caller", "name": "everybody", "admin": True, "bounds": none}
        assert await app.get("/v1/me") == (200, everybody)
    async with running(engine=QuickEngine, callers=written(tmp_path, f"[{{name: ann, key: {ANN}}}]")) as app:
        assert (await As(app, ANN).ask("GET", "/v1/me"))[1]["admin"], "there is no other admin"
    async with running(engine=QuickEngine, callers=callers, api_key="k") as app:
        assert (await As(app, "k").ask("GET", "/v1/me"))[1]["name"] == "everybody"
        assert not (await As(app, ANN).ask("GET", "/v1/me"))[1]["admin"]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/me", {"api-key": ANN}, 200),
        ("/v1/me", {"api-key": ROOT_HASH}, 401),
        ("/v1/me", {"api-key": "käse"}, 401),
        ("/v1/me", {"Authorization": BASIC}, 401),
        ("/sdapi/v1/options", {"Authorization": BASIC}, 200),
        ("/internal/progress", {"Authorization": BASIC}, 405),
        ("/v1/me", {}, 401),
    ],
)  # fmt: skip
async def test_how_keys_come(
    running: RunningApp, callers: Path, path: str, headers: dict[str, str], status: int
) -> None:
    """In Azure's header, and by Basic under AUTOMATIC1111's paths; the hash of a key is none."""
    async with running(engine=QuickEngine, callers=callers) as app:
        assert (await app.get(path, **headers))[0] == status


# -- bounds and turns ---------------------------------------------------------------------------------


async def test_bounds_of_a_request(running: RunningApp, tmp_path: Path) -> None:
    """They are those of the server where the caller has none; the model's limits tell them."""
    async with running(engine=QuickEngine, callers=written(tmp_path, BOUNDED)) as app:
        ann, root = As(app, ANN), As(app, ROOT)
        for fields, words in (
            ({"n": 3}, "at most 2"),
            ({"steps": 6}, "at most 5"),
            ({"size": "128x64"}, "size"),
        ):
            status, body = await ann.make(**fields)
            assert (status, words in body["detail"]) == (400, True), body
            assert (await root.make(**fields))[0] == 200
        assert (await ann.make(n=2, steps=5))[0] == 200
        limits = (await ann.ask("GET", "/v1/models/tiny-random"))[1]["meta"]["limits"]
        assert (limits["max_n"], limits["max_steps"], limits["max_pixels"]) == (2, 5, 5000)


async def test_bound_of_jobs(running: RunningApp, tmp_path: Path) -> None:
    """A third at once is a 429, until one has ended; others are not touched by it."""
    async with running(engine=NeverAnswers, callers=written(tmp_path, BOUNDED)) as app:
        ann, root = As(app, ANN), As(app, ROOT)
        first, _ = await ann.begin(), await ann.begin()
        for path, fields in ((GENERATIONS, SMALL), ("/sdapi/v1/txt2img", TXT2IMG)):
            status, body = await ann.ask("POST", path, fields)
            assert (status, body["error"]["code"]) == (429, "queue_full")
            assert "2 jobs of ann" in body["detail"]
        await root.begin()
        await ann.ask("DELETE", f"/v1/jobs/{first}")
        await ann.begin()


async def test_many_at_once_stay_within_the_bound(running: RunningApp, tmp_path: Path) -> None:
    """Those that are looked at together do not slip in together."""
    async with running(engine=NeverAnswers, callers=written(tmp_path, BOUNDED)) as app:
        ann = As(app, ANN)
        answers = await asyncio.gather(
            *(ann.ask("POST", GENERATIONS, SMALL, Prefer="respond-async") for _ in range(8))
        )
        assert sorted(status for status, _ in answers) == [202] * 2 + [429] * 6


async def test_callers_take_turns(running: RunningApp, callers: Path) -> None:
    """One job of bob's behind ten of ann's is the second that runs; places tell so."""
    order: list[int] = []

    class Gate(QuickEngine):
        opened = asyncio.Event()

        async def at_step(self, step: int) -> None:
            await self.opened.wait()

    async with running(engine=Gate, callers=callers) as app:
        ann, bob, root = people(app)
        queued = [await ann.begin(seed=n) for n in range(10)]
        await ann.reaches(queued[0], "running")
        late = await bob.begin(seed=10)
        later = [await bob.begin(seed=11), await bob.begin(seed=12)]
        places = {job["id"]: job["position"] for job in (await root.ask("GET", "/v1/jobs"))[1]["data"]}
        assert [places[job] for job in (late, *later)] == [1, 3, 5]
        assert [places[job] for job in queued[:4]] == [None, 2, 4, 6]
        Gate.opened.set()
        for job in (*queued, *later):
            await root.reaches(job, "succeeded")
        began = {job.plan.spec.seed: job.started_at or 0.0 for job in app.scheduler.jobs.values()}
        order = sorted(began, key=lambda seed: began[seed])
    assert order == [0, 10, 1, 11, 2, 12, *range(3, 10)]


# -- the file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be a list of callers"),
        ("[]", "at least one caller"),
        ("ann: secret-1", "must be a list of callers"),
        ("[{name: ann}]", "entry 1: either 'key' or 'sha256' is needed"),
        ("[{name: ann, key: secret-1, sha256: secret-1}]", "entry 1: sha256: "),
        ("[{name: ann, key: 12345}]", "entry 1: key: .*put it in quotes"),
        ("[{name: a b, key: secret-1}]", "entry 1: name: "),
        ("[{name: ann, key: secret-1, amdin: true}]", "entry 1: amdin: "),
        ("[{name: ann, key: secret-1, bounds: {jobs: 0}}]", "entry 1: bounds.jobs: "),
        ("[{name: ann, key: secret-1, bounds: {job: 1}}]", "entry 1: bounds.job: "),
        ("[{name: ann, key: secret-1}, {name: ann, key: secret-2}]", "ann: name: is taken"),
        ("[{name: ann, key: secret-1}, {name: bob, key: secret-1}]", "bob: key: is that of ann as well"),
        ("[{name: everybody, key: secret-1}]", "everybody: name: is taken"),
        ("- {name: ann, key: secret-1\n  x: [", "line 2: not valid YAML"),
        ("[{name: ann, key: \x00secret-1}]", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, text: str, words: str) -> None:
    """By file, entry and field, and never with a key."""
    with pytest.raises(CallersError, match=f"callers.yaml.*{words}") as caught:
        Callers(Settings(callers=written(tmp_path, text)))
    assert "secret-" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    """As one that cannot be read."""
    with pytest.raises(CallersError, match=r"--callers: cannot read none\.yaml: No such file"):
        Callers(Settings(callers=tmp_path / "none.yaml"))


def test_a_key_of_both(callers: Path) -> None:
    """One key is one caller."""
    with pytest.raises(CallersError, match="ann: key: is that of --api-key as well"):
        Callers(Settings(callers=callers, api_key=ANN))


@pytest.mark.posix
def test_a_real_server(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """The file is read at the start and again on SIGHUP; the log names callers, and no keys."""
    path = written(tmp_path, FILE)
    path.chmod(0o644)
    server = serve("--callers", str(path), "--log-level", "debug")
    asyncio.run(_two_callers(server, path))
    log = server.log()
    assert "other users can read the keys in callers.yaml" in log
    assert "of ann at 127.0.0.1: generation" in log
    assert "the callers stay as they were: callers.yaml: " in log
    assert not [key for key in (ANN, BOB, ROOT, ROOT_HASH) if key in log]


async def _two_callers(server: ServerProcess, path: Path) -> None:

    async with aiohttp.ClientSession() as session:

        async def ask(key: str, method: str, path: str, **options: Any) -> tuple[int, Any]:
            headers = {"api-key": key}
            async with session.request(method, server.url + path, headers=headers, **options) as answer:
                return answer.status, await answer.json()

        status, made = await ask(ANN, "POST", GENERATIONS, json={**SMALL, "steps": 1})
        assert status == 200
        assert (await ask(BOB, "GET", f"/v1/jobs/{made['id']}"))[0] == 404
        assert (await ask(ROOT, "GET", f"/v1/jobs/{made['id']}"))[0] == 200

        async def told(key: str, status: int) -> Any:
            async def look() -> bool:
                return (await ask(key, "GET", "/v1/me"))[0] == status

            return await eventually(f"{key} is answered {status}", look)

        path.write_text(FILE.replace(BOB, "another-key"))
        server.process.send_signal(signal.SIGHUP)
        await told(BOB, 401)
        path.write_text("nonsense")
        server.process.send_signal(signal.SIGHUP)
        await told("another-key", 200)

        async def logged() -> bool:
            return "the callers stay as they were" in server.log()

        await eventually("the fault is in the log", logged)
        await told("another-key", 200)


def test_a_wrong_file_ends_the_start(tmp_path: Path) -> None:
    """In one line, before anything is served."""
    path = written(tmp_path, "[{name: ann}]")
    command = [sys.executable, "-m", "gguf_imagegen", "serve", "--port", "0", "--callers", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert run.stderr.strip() == ("gguf-imagegen: callers.yaml: entry 1: either 'key' or 'sha256' is needed")
