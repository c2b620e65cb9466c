"""What the page reads: all jobs on one stream, the gallery, and the page's own files."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.api.client import DONE, GENERATIONS, SMALL, Event, eventually, picture, read_block, start_job
from tests.conftest import App, RunningApp
from tests.fake_engines import QuickEngine, SlowEngine


class Watcher:
    """Frames of /v1/events as they come."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.comments = 0

    def of(self, job_id: str) -> list[Any]:
        return [frame for frame in self.frames if job_id in (frame.get("job"), frame.get("id"))]

    def types(self, job_id: str) -> list[str]:
        return [frame["type"] for frame in self.of(job_id)]

    async def read(self, answer: aiohttp.ClientResponse) -> None:
        rest = ""
        async for data in answer.content.iter_any():
            *blocks, rest = (rest + data.decode()).split("\n\n")
            for block in blocks:
                event = read_block(block)
                if isinstance(event, str):
                    self.comments += 1
                else:
                    assert event.data != DONE
                    self.frames.append(event.data)


@contextlib.asynccontextmanager
async def watching(app: App) -> AsyncIterator[Watcher]:
    watcher = Watcher()
    async with app.session.get(f"{app.url}/v1/events") as answer:
        assert answer.status == 200
        task = asyncio.create_task(watcher.read(answer))
        try:
            yield watcher
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def ended(watcher: Watcher, job_id: str) -> None:
    async def look() -> bool:
        return "ended" in watcher.types(job_id)

    await eventually("the job's end is told", look)


async def test_all_jobs_on_one_connection(running: RunningApp) -> None:
    """Each job from its object to its end, in order; pictures by URL; previews as pictures."""
    async with running(engine=QuickEngine, heartbeat=0.1) as app, watching(app) as watcher:
        options = {"preview": True}
        bodies = [(await app.post(GENERATIONS, **SMALL, n=n, stream_options=options))[1] for n in (1, 2)]
        for body in bodies:
            await ended(watcher, body["id"])
            frames = watcher.of(body["id"])
            assert [frames[0]["type"], frames[-1]["type"]] == ["job", "ended"]
            numbers = [frame["index"] for frame in frames[1:]]
            assert numbers == sorted(set(numbers))
            assert frames[-1]["status"] == "succeeded"
            images = [frame for frame in frames if frame["type"] == "image"]
            assert [image["url"] for image in images] == [item["url"] for item in body["data"]]
            previews = [frame for frame in frames if frame["type"] == "preview"]
            assert previews
            assert picture(previews[0]["b64_json"]).size == (64, 64)
        await eventually("a heartbeat", lambda: _true(watcher.comments > 2))


async def _true(value: bool) -> bool:
    return value


async def test_who_comes_later_gets_what_goes_on(running: RunningApp) -> None:
    """A running and a waiting job are told from their start, one that has ended is not."""
    async with running(engine=SlowEngine) as app:
        _, over = await app.post(GENERATIONS, **{**SMALL, "steps": 1})
        first, job = await start_job(app, seed=1)
        second, waiting = await start_job(app, "queued", seed=2)
        async with watching(app) as watcher:
            async with app.session.delete(f"{app.url}/v1/jobs/{job['id']}"):
                pass
            await ended(watcher, job["id"])
            await ended(watcher, waiting["id"])
            assert watcher.of(over["id"]) == []
            assert watcher.types(job["id"])[:3] == ["job", "queued", "started"]
            assert watcher.of(job["id"])[-1]["error"]["code"] == "cancelled"
        await asyncio.gather(first, second)


async def test_what_has_ended_is_told_when_asked_for(running: RunningApp) -> None:
    """`recent` gives that many of the latest ended jobs, each by its job object alone."""
    async with running(engine=QuickEngine) as app:
        made = [(await app.post(GENERATIONS, **SMALL, seed=seed))[1]["id"] for seed in range(4)]
        for recent, told in ((2, made[2:]), (100, made), (0, [])):
            async with app.session.get(f"{app.url}/v1/events?recent={recent}") as answer:
                assert (await answer.content.readuntil(b"\n\n")) == b": hb\n\n"
                blocks = [
                    read_block((await answer.content.readuntil(b"\n\n")).decode().strip()) for _ in told
                ]
            assert [block.data["id"] for block in blocks if isinstance(block, Event)] == told
            assert {block.data["type"] for block in blocks if isinstance(block, Event)} <= {"job"}
        for wrong in ("101", "-1", "x", ""):
            status, body = await app.get(f"/v1/events?recent={wrong}")
            assert (status, body["error"]["param"]) == (400, "recent")


async def test_the_server_ends_its_streams(running: RunningApp) -> None:
    """A page that watches does not hold up the server's end."""
    async with contextlib.AsyncExitStack() as stack:
        async with running(engine=QuickEngine) as app:
            await stack.enter_async_context(watching(app))
            began = time.monotonic()
            await app.scheduler.drain(0)
        assert time.monotonic() - began < 10


async def test_the_gallery(running: RunningApp, tmp_path: Path) -> None:
    """Newest first, in pages, with the parameters; kept across restarts; deleted for good."""
    async with running(engine=QuickEngine, output_dir=tmp_path) as app:
        made = [(await app.post(GENERATIONS, **SMALL, seed=seed))[1]["data"][0]["url"] for seed in range(5)]
    async with running(engine=QuickEngine, output_dir=tmp_path) as app:
        _, first = await app.get("/v1/images?limit=3")
        _, rest = await app.get(f"/v1/images?before={first['data'][-1]['id']}")
        items = first["data"] + rest["data"]
        assert (first["has_more"], rest["has_more"]) == (True, False)
        names = [item["id"] for item in items]
        assert sorted(names, reverse=True) == names
        assert set(names) == {url.rsplit("/", 1)[1] for url in made}
        assert [item["parameters"]["Seed"] for item in items] == list("43210")
        assert items[0]["parameters"]["Prompt"] == "a cat"
        async with app.session.delete(f"{app.url}/v1/images/files/{names[0]}") as answer:
            assert (await answer.json())["deleted"]
        async with app.session.delete(f"{app.url}/v1/images/files/{names[0]}") as answer:
            assert answer.status == 404
        _, left = await app.get("/v1/images")
        assert [item["id"] for item in left["data"]] == names[1:]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("limit", ["0", "201", "x", "-1", ""])
async def test_pages_have_bounds(running: RunningApp, limit: str) -> None:
    """A wrong limit is a 400 that names it."""
    async with running(engine=QuickEngine) as app:
        status, body = await app.get(f"/v1/images?limit={limit}")
    assert (status, body["error"]["param"]) == (400, "limit")


async def test_the_page_is_small_and_complete(running: RunningApp) -> None:
    """All its files come from the server, compressed, under a strict policy, and are not sent twice."""
    async with running(engine=QuickEngine, api_key=("k",)) as app:
        seen, todo, size = set[str](), ["/"], 0
        while todo:
            path = todo.pop()
            seen.add(path)
            async with app.session.get(app.url + path) as answer:
                assert answer.status == 200, path
                policy = answer.headers.get("Content-Security-Policy", "")
                shown_alone = answer.content_type in ("text/html", "image/svg+xml")
                assert ("default-src 'none'" in policy) == shown_alone
                assert answer.headers["Content-Encoding"] == "gzip"
                size += int(answer.headers["Content-Length"])
                text, tag = await answer.text(), answer.headers["ETag"]
            async with app.session.get(app.url + path, headers={"If-None-Match": tag}) as answer:
                assert answer.status == 304
            named = [f"/{name}" for name in re.findall(r'(?:href|src)="(web/[^"]+)"', text)]
            named += [f"/web/{name}" for name in re.findall(r'from "\./([^"]+)"', text)]
            todo += [name for name in named if name not in seen and name not in todo]
            assert not re.search(r"https?://(?!www\.w3\.org)", text), path
        assert size < 150_000
        assert len(seen) > 8
        assert (await app.get("/web/nothing.js"))[0] == 404
        assert (await app.get("/web/..%2Fapp.py"))[0] in (401, 404)
        status, _ = await app.get("/v1/images")
        assert status == 401
