"""Clients that try again join the job that they started, and their time-outs do not end it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import aiohttp
import openai
import pytest

from tests.api.client import GENERATIONS, SMALL, eventually, job_in_state
from tests.conftest import App, RunningApp
from tests.fake_engines import FailsGeneration, NeverAnswers, QuickEngine, SlowEngine

SLOW = {**SMALL, "steps": 4, "seed": 1}


async def jobs(app: App) -> list[Any]:
    _, body = await app.get("/v1/jobs")
    return list(body["data"])


async def leave(app: App, seconds: float, headers: dict[str, str], **fields: Any) -> None:
    """Ask, wait so long, and go away."""
    timeout = aiohttp.ClientTimeout(total=seconds)
    with contextlib.suppress(asyncio.TimeoutError):
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(app.url + GENERATIONS, json={**SLOW, **fields}, headers=headers) as answer,
        ):
            await answer.read()
            raise AssertionError("it was answered")


async def ask(app: App, headers: dict[str, str], **fields: Any) -> tuple[int, Any]:
    async with app.session.post(app.url + GENERATIONS, json={**SLOW, **fields}, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_the_official_client_gets_its_picture_in_spite_of_its_time_out(running: RunningApp) -> None:
    """Its read time-out is shorter than the job: blanks keep it waiting, and there is one job."""
    async with running(engine=SlowEngine) as app:
        async with openai.AsyncOpenAI(base_url=f"{app.url}/v1", api_key="x", timeout=1.0) as client:
            answer = await client.images.generate(prompt="a cat", size="1024x1024", extra_body=SLOW)
        assert answer.data is not None
        assert answer.data[0].b64_json
        assert len(await jobs(app)) == 1


async def test_a_retry_of_the_official_client_joins_its_job(running: RunningApp) -> None:
    """A second try with the same body, after the first was lost at its time-out, gets the first one's job."""
    sdk = {"x-stainless-read-timeout": "0.7"}
    async with running(engine=SlowEngine) as app:
        await leave(app, 0.66, {**sdk, "x-stainless-retry-count": "0"})
        await asyncio.sleep(0.3)
        status, body = await ask(app, {"x-stainless-retry-count": "1"})
        (job,) = await jobs(app)
        assert (status, body["id"]) == (200, job["id"])


async def test_without_a_second_try_the_job_is_cancelled_soon(running: RunningApp) -> None:
    """A client that leaves long before its time-out wants nothing more."""
    async with running(engine=SlowEngine) as app:
        await leave(app, 0.5, {"x-stainless-retry-count": "0", "x-stainless-read-timeout": "600"})
        await job_in_state(app, "cancelled")


async def test_one_key_is_one_job(running: RunningApp) -> None:
    """Whoever sends the same Idempotency-Key and body gets the same job: at once and later."""
    key = {"Idempotency-Key": "abc"}
    async with running(engine=SlowEngine) as app:
        await leave(app, 0.5, key)
        answers = [*await asyncio.gather(ask(app, key), ask(app, key)), await ask(app, key)]
        (job,) = await jobs(app)
        assert [(status, body["id"]) for status, body in answers] == [(200, job["id"])] * 3
        assert len({body["data"][0]["b64_json"] for _, body in answers}) == 1
        status, body = await ask(app, key, seed=2)
        assert (status, body["error"]["param"]) == (400, "Idempotency-Key")
        assert (await ask(app, {"Idempotency-Key": "other"}))[1]["id"] != job["id"]


async def test_a_failed_job_is_made_anew(running: RunningApp) -> None:
    """A key does not bind anybody to a failure."""
    engines = iter([FailsGeneration(), QuickEngine()])
    async with running(engine=lambda: next(engines)) as app:
        status, _ = await ask(app, {"Idempotency-Key": "k"})
        assert status == 500
        await app.post("/v1/models/tiny-random/unload")
        await eventually("the model is unloaded", lambda: _unloaded(app))
        status, _ = await ask(app, {"Idempotency-Key": "k"})
        assert status == 200


async def _unloaded(app: App) -> bool:
    _, body = await app.get("/health")
    return not body["loaded"]


async def test_a_failure_behind_blanks_is_told_in_the_body(running: RunningApp) -> None:
    """Blanks mean that the status is sent: the error object says what happened."""
    async with running(engine=NeverAnswers) as app:
        headers = {"x-stainless-retry-count": "0", "x-stainless-read-timeout": "0.4"}
        async with app.session.post(app.url + GENERATIONS, json=SLOW, headers=headers) as answer:
            job = await job_in_state(app, "running")
            async with app.session.delete(f"{app.url}/v1/jobs/{job['id']}"):
                pass
            assert (answer.status, (await answer.json())["error"]["code"]) == (200, "cancelled")


@pytest.mark.parametrize("value", ["", "abc", "-1", "nan", "inf", "0"])
async def test_time_outs_that_are_none(running: RunningApp, value: str) -> None:
    """Whatever the header holds, the picture comes."""
    async with running(engine=QuickEngine) as app:
        status, _ = await ask(app, {"x-stainless-retry-count": "0", "x-stainless-read-timeout": value})
        assert status == 200
