"""The tail of the log that admins read and follow: bounded, without prompts and tracebacks."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from gguf_imagegen.api import server_log
from gguf_imagegen.machine.logs import KEPT
from tests.api.client import GENERATIONS, SMALL
from tests.conftest import App, RunningApp
from tests.fake_engines import QuickEngine

log = logging.getLogger("gguf_imagegen.tests")


@pytest.fixture(autouse=True)
def _at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def lines(app: App, query: str = "") -> list[Any]:
    status, body = await app.get(f"/v1/logs{query}")
    assert (status, body["object"]) == (200, "list")
    return list(body["data"])


async def test_the_latest_lines(running: RunningApp, caplog: pytest.LogCaptureFixture) -> None:
    """A job's lines, the newest last, without the prompt that stderr has; of others' loggers nothing."""
    async with running(engine=QuickEngine) as app:
        _, body = await app.post(GENERATIONS, **{**SMALL, "prompt": "a secret cat"})
        logging.getLogger("elsewhere").warning("in /home/somebody")
        told = await lines(app)
        assert await lines(app, "?limit=1") == told[-1:]
        assert (await app.get("/v1/logs?limit=0"))[1]["error"]["code"] == "invalid_request"
    begun, ended = (each for each in told if body["id"] in each["message"])
    assert begun["message"].startswith(f"job {body['id']} of 127.0.0.1: generation, tiny-random, 64x64")
    assert "succeeded" in ended["message"]
    assert (begun["level"], begun["id"] < ended["id"]) == ("info", True)
    assert "secret cat" in caplog.text
    assert not [each for each in told if "cat" in each["message"] or "somebody" in each["message"]]


async def test_lines_are_few_and_tell_no_paths(running: RunningApp) -> None:
    """No more than are kept; an exception by its type alone; on one line, whatever is in it."""
    async with running(engine=QuickEngine) as app:
        for number in range(KEPT + 50):
            log.info("line %d", number)
        try:
            Path("/no/such/place").read_text()
        except OSError:
            log.exception("reading\nfailed")
        told = app.app[server_log.TAIL].since(0)
        assert (len(told), told[0].text) == (KEPT, "line 51")
        assert told[-1].text == "reading\\nfailed (FileNotFoundError; stderr has the traceback)"
        assert app.app[server_log.TAIL].since(told[-1].number - 1) == told[-1:]
    log.info("after the end")
    assert app.app[server_log.TAIL].since(told[-1].number) == []


async def test_lines_are_followed(running: RunningApp) -> None:
    """What is kept, then each new line, also one of another thread; the stream ends with the server."""
    async with running(engine=QuickEngine) as app:
        log.info("before")
        async with app.session.get(f"{app.url}/v1/logs/events") as answer:
            found: list[Any] = []

            async def until(message: str) -> None:
                while message not in [each["message"] for each in found]:
                    line = await answer.content.readline()
                    assert line, found
                    if line.startswith(b"data: "):
                        found.append(json.loads(line[6:]))

            await asyncio.wait_for(until("before"), 20)
            await asyncio.to_thread(log.warning, "from a thread")
            await asyncio.wait_for(until("from a thread"), 20)
            assert found[-1]["level"] == "warning"
            await app.scheduler.drain(0)
            await asyncio.wait_for(answer.content.read(), 20)
