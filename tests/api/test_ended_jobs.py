"""What is left of a job that has ended: what describes it, and nothing decoded."""

from __future__ import annotations

import asyncio
import base64
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from PIL import Image

from gguf_imagegen.jobs.job import Job
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.errors import GenerationFailed
from tests.api.client import EDITS, GENERATIONS, SMALL, data_url, eventually, noise, png, start_job
from tests.conftest import App, RunningApp
from tests.fake_engines import CannotLoad, CrashesAtStep, FailsGeneration, NeverAnswers, QuickEngine
from tests.weights import write_upscaler

EDIT = {
    "prompt": "a hat",
    "image": data_url(png(noise(96, 96))),
    "mask": data_url(png(noise(96, 96).convert("L"))),
    "size": "96x96",
    "steps": 2,
}


@pytest.fixture(autouse=True)
def _nothing_is_collected() -> Iterator[None]:
    """What hangs on itself counts: megabytes must not wait until somebody looks for such rings.

    What was there before is set aside: looking through a whole process takes seconds.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def pixels() -> int:
    """Bytes of all decoded pictures that anything made by this test still holds.

    The collector knows no structs and tuples without references to what it knows, so those are looked into.
    """
    found = {id(each): each.width * each.height for each in gc.get_objects() if isinstance(each, Image.Image)}
    held = gc.get_referents(*gc.get_objects())
    while held:
        pictures = [each for each in held if isinstance(each, RawImage)]
        found |= {id(each): len(each.data) for each in pictures}
        unknown = (each for each in held if not gc.is_tracked(each) and isinstance(each, Struct | tuple))
        held = gc.get_referents(*unknown)
    return sum(found.values())


async def left(app: App, before: int) -> None:
    async def gone() -> bool:
        return pixels() <= before

    await eventually("the pixels are gone", gone)


def described(job: Job) -> tuple[Any, ...]:
    plan, spec = job.plan, job.plan.generate
    made = (spec.prompt, spec.init_image and spec.init_image.width) if spec else ()
    return (plan.operation, plan.delivered, *made, plan.n)


class FailsUpscale(QuickEngine):
    """Has no more paint when a picture is to be made larger."""

    async def at_step(self, step: int) -> None:
        raise GenerationFailed("The image could not be enlarged: out of paint.")


@pytest.mark.parametrize("engine", [QuickEngine, FailsGeneration, CrashesAtStep, CannotLoad])
async def test_an_edit_that_has_ended_keeps_no_pixels(running: RunningApp, engine: type[QuickEngine]) -> None:
    """However it ends: the job still tells what was asked, and its error is told as before."""
    before = pixels()
    async with running(engine=engine) as app:
        status, body = await app.post(EDITS, **EDIT)
        await left(app, before)
        (job,) = app.scheduler.jobs.values()
        assert described(job) == ("edit", (96, 96), "a hat", 96, 1)
        assert job.ended
        _, told = await app.get(f"/v1/jobs/{job.id}")
        assert told["settings"]["Input mask"] == "yes"
        assert told["error"] == body.get("error")
        assert (told["error"] is None) == (status == 200)


async def test_a_refused_edit_keeps_no_pixels(running: RunningApp) -> None:
    """Nor does a request that becomes no job, although its pictures were read."""
    before = pixels()
    async with running(engine=QuickEngine) as app:
        status, _ = await app.post(EDITS, **EDIT, lora=[{"name": "nobody"}])
        assert status == 400
        await left(app, before)


@pytest.mark.parametrize("state", ["running", "queued"])
async def test_a_cancelled_edit_keeps_no_pixels(running: RunningApp, state: str) -> None:
    """Neither one that was running nor one that waited."""
    before = pixels()
    async with running(engine=NeverAnswers) as app:
        first, job = await start_job(app)
        if state == "running":
            await app.session.delete(f"{app.url}/v1/jobs/{job['id']}")
        edit = asyncio.create_task(app.post(EDITS, **EDIT))

        async def there() -> Job | None:
            found = [job for job in app.scheduler.jobs.values() if job.plan.operation == "edit"]
            return found[0] if found and found[0].status == state else None

        found = await eventually("the edit is there", there)
        assert pixels() > before
        await app.session.delete(f"{app.url}/v1/jobs/{found.id}")
        assert (await edit)[0] == 499
        await left(app, before)
        assert described(found) == ("edit", (96, 96), "a hat", 96, 1)
        await app.session.delete(f"{app.url}/v1/jobs/{job['id']}")
        await first


async def test_a_failed_upscale_keeps_no_pixels(running: RunningApp, tmp_path: Path) -> None:
    """Nor does what was made of it on the way to the engine, which an error's trace would keep."""
    write_upscaler(tmp_path / "x2.gguf", 2)
    before = pixels()
    async with running(engine=FailsUpscale, upscaler_dir=tmp_path) as app:
        body = {"image": base64.b64encode(png(noise(96, 96))).decode(), "upscaler_1": "x2"}
        status, answer = await app.post("/sdapi/v1/extra-single-image", **body)
        assert (status, answer["error"]["code"]) == (500, "generation_failed")
        await left(app, before)
        (job,) = app.scheduler.jobs.values()
        assert described(job) == ("upscale", (192, 192), 1)


@pytest.mark.parametrize("engine", [FailsGeneration, CannotLoad])
async def test_an_error_keeps_no_trace(running: RunningApp, engine: type[QuickEngine]) -> None:
    """Raised for each who waits, and for each who comes while the model is not tried again."""
    async with running(engine=engine) as app:
        header = {"Idempotency-Key": "one"}
        for _ in range(3):
            async with app.session.post(app.url + GENERATIONS, json=SMALL, headers=header) as answer:
                assert answer.status == 500
        errors = [job.error for job in app.scheduler.jobs.values()]
        errors += app.service.pool.errors.values()
        assert errors
        for error in errors:
            assert error is not None
            assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)
