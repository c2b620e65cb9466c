"""Ends of jobs are told to the address that a request names: signed, again after a failure, over restarts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gguf_imagegen.vocabulary.waits import Waits
from tests.api.client import GENERATIONS, SMALL, eventually, job_in_state
from tests.api.test_restart import LASTING, Kept, begin, gone, kept
from tests.conftest import App, RunningApp
from tests.endpoints import Answer, Call, Endpoint, endpoint, fine
from tests.fake_engines import NeverAnswers, QuickEngine

__all__ = ["kept"]
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
SOON = Waits(webhook_again=(0.0, 0.0))
LATE = Waits(webhook_again=(10_000.0,))


def hooked(there: Endpoint, **fields: Any) -> dict[str, Any]:
    return {"engine": QuickEngine, "waits": SOON, "webhooks": there.url, "webhook_secret": SECRET, **fields}


def answers(*statuses: int) -> Answer:
    """One after the other, the last one again and again."""
    left = list(statuses)

    async def answer(call: Call) -> web.StreamResponse:
        status = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    return answer


def genuine(call: Call) -> Any:
    """The message, if its signature is right."""
    head = {name.lower(): value for name, value in call.headers.items()}
    content = f"{head['webhook-id']}.{head['webhook-timestamp']}.".encode() + call.body
    digest = base64.b64encode(hmac.digest(KEY, content, hashlib.sha256)).decode()
    assert head["webhook-signature"] == f"v1,{digest}"
    assert head["content-type"] == "application/json"
    message = json.loads(call.body)
    assert message["data"]["id"] == head["webhook-id"]
    return message


async def called(there: Endpoint, times: int) -> None:
    async def so_often() -> bool:
        return len(there.calls) >= times

    await eventually(f"it is called {times} times", so_often)


async def settled(app: App) -> None:
    """No letter waits."""

    async def none_waits() -> bool:
        return not app.service.webhooks.waiting

    await eventually("all letters are sent or given up", none_waits)


async def test_the_end_of_a_job_is_told(running: RunningApp) -> None:
    """With addresses of its pictures that can be read, no pixels and no prompt."""
    async with endpoint() as there, running(**hooked(there)) as app:
        status, body = await app.post(GENERATIONS, **SMALL, n=2, seed=7, webhook=f"{there.url}/done?for=me")
        assert status == 200, body
        await called(there, 1)
        (call,) = there.calls
        message = genuine(call)
        data = message["data"]
        assert call.path == "/done?for=me"
        assert (message["type"], data["status"], data["error"]) == ("job.succeeded", "succeeded", None)
        assert [image["url"] for image in data["data"]] == [image["url"] for image in body["data"]]
        assert [image["seed"] for image in data["data"]] == [7, 8]
        assert str(SMALL["prompt"]) not in call.body.decode()
        for address in (data["url"], data["data"][0]["url"]):
            async with app.session.get(address) as answer:
                assert answer.status == 200, address


async def test_other_ends_are_told_too(running: RunningApp) -> None:
    """A job that is cancelled has an error in the place of pictures."""
    async with endpoint() as there, running(**hooked(there, engine=NeverAnswers)) as app:
        task = asyncio.create_task(app.post(GENERATIONS, **SMALL, webhook=there.url))
        job = await job_in_state(app, "running")
        assert (await app.session.delete(f"{app.url}/v1/jobs/{job['id']}")).status == 200
        await task
        await called(there, 1)
        message = genuine(there.calls[0])
    assert (message["type"], message["data"]["error"]["code"]) == ("job.cancelled", "cancelled")


async def test_addresses_that_nobody_listed_are_refused(running: RunningApp) -> None:
    """Before anything is done; nothing is sent."""
    async with endpoint() as there, endpoint() as other, running(**hooked(there)) as app:
        status, body = await app.post(GENERATIONS, **SMALL, webhook=other.url)
        assert (status, body["error"]["param"]) == (400, "webhook")
        assert not app.scheduler.jobs
        assert (await app.post(GENERATIONS, **SMALL))[0] == 200
        await settled(app)
        assert there.calls == other.calls == []


@pytest.mark.parametrize(
    ("statuses", "calls"), [((500, 200), 2), ((302, 404, 204), 3), ((503,), 3), ((410,), 1)]
)
async def test_failures_are_tried_again(
    running: RunningApp, caplog: pytest.LogCaptureFixture, statuses: tuple[int, ...], calls: int
) -> None:
    """With the same id, as often as is set; redirects lead nowhere, 410 ends it, and no log has a secret."""
    caplog.set_level(logging.DEBUG)
    async with endpoint(answers(*statuses)) as there, running(**hooked(there)) as app:
        await app.post(GENERATIONS, **SMALL, webhook=f"{there.url}/x?token=sesame")
        await called(there, calls)
        await settled(app)
    assert [call.path for call in there.calls] == ["/x?token=sesame"] * calls
    assert len({call.headers["webhook-id"] for call in there.calls}) == 1
    for call in there.calls:
        genuine(call)
    assert ("given up" in caplog.text) is (statuses in ((503,), (410,)))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("gguf_imagegen")]
    assert not any("sesame" in line or SECRET in line for line in ours)


async def test_a_letter_survives_the_server(running: RunningApp, kept: Kept) -> None:
    """What was not delivered is tried again by the next server, which has the same words; then it is done."""
    async with endpoint(answers(503, 200)) as there:
        async with running(**hooked(there, waits=LATE, state_dir=kept.folder)) as app:
            assert (await app.post(GENERATIONS, **SMALL, webhook=there.url))[0] == 200
            await called(there, 1)
        letters = hooked(there, state_dir=kept.folder)
        assert len(there.calls) == 1
        _make_due(kept.folder)
        async with running(**letters) as app:
            await called(there, 2)
            await settled(app)
        async with running(**letters) as app:
            await app.service.knows_the_past.wait()
            await settled(app)
    first, second = there.calls
    assert first.body == second.body
    assert genuine(second)["type"] == "job.succeeded"


async def test_a_job_that_goes_on_after_a_crash_is_told_once(running: RunningApp, kept: Kept) -> None:
    """The ticket knows the address; the end of the server is not the job's end."""
    async with endpoint() as there:
        async with running(**hooked(there, engine=NeverAnswers, state_dir=kept.folder)) as app:
            client, job_id = await begin(app, webhook=there.url, **LASTING)
            await job_in_state(app, "running", job_id)
        await gone(client)
        assert there.calls == []
        async with running(**hooked(there, state_dir=kept.folder)) as app:
            await called(there, 1)
            await settled(app)
        (call,) = there.calls
        message = genuine(call)
        assert (message["data"]["id"], message["type"]) == (job_id, "job.succeeded")
        assert message["data"]["url"].startswith("http://127.0.0.1:")


async def test_a_list_that_became_shorter_counts(running: RunningApp, kept: Kept) -> None:
    """Letters of earlier runs go nowhere that is not allowed now."""
    async with endpoint(answers(503)) as there, endpoint(fine) as other:
        async with running(**hooked(there, waits=LATE, state_dir=kept.folder)) as app:
            await app.post(GENERATIONS, **SMALL, webhook=there.url)
            await called(there, 1)
        _make_due(kept.folder)
        async with running(**hooked(other, state_dir=kept.folder)) as app:
            await app.service.knows_the_past.wait()
            await settled(app)
        assert (len(there.calls), other.calls) == (1, [])


def _make_due(folder: Path) -> None:
    """As if the wait were over."""
    with closing(sqlite3.connect(folder / "journal.sqlite")) as db:
        ((job, row),) = db.execute("SELECT job, letter FROM letters").fetchall()
        letter = {**json.loads(row), "due": 0.0}
        assert letter["attempts"] == 1
        db.execute("UPDATE letters SET letter = ? WHERE job = ?", (json.dumps(letter).encode(), job))
        db.commit()
