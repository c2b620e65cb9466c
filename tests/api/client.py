"""What the HTTP tests share: a strict reader of event streams, pictures, and waiting for a condition."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import numpy as np
from PIL import Image

from tests.conftest import DEADLINE, App

T = TypeVar("T")
GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
SMALL = {"prompt": "a cat", "size": "64x64", "steps": 2}
DONE = "[DONE]"


@dataclass(frozen=True)
class Event:
    """One server-sent event; `data` is the JSON, or `DONE`."""

    event: str | None
    id: str | None
    data: Any

    @property
    def item(self) -> Any:
        """llama-box's item."""
        (item,) = self.data["data"]
        return item


@dataclass(frozen=True)
class Stream:
    """A whole streamed answer."""

    events: list[Event]
    comments: list[str]
    headers: dict[str, str]

    @property
    def items(self) -> list[Any]:
        """llama-box's items of all frames that have one, but the last frame, which must be [DONE]."""
        assert self.events[-1].data == DONE
        return [event.item for event in self.events[:-1] if event.data["data"]]


def read_block(text: str) -> Event | str:
    """One event or comment; anything that a strict client stumbles over is a failure."""
    lines = text.split("\n")
    if text.startswith(":"):
        assert all(line.startswith(":") for line in lines), lines
        return text.removeprefix(":").strip()
    fields = dict(line.split(": ", 1) for line in lines)
    assert len(fields) == len(lines), f"a field comes twice in {lines}"
    assert set(fields) <= {"event", "id", "data"}, lines
    data = fields["data"]
    return Event(fields.get("event"), fields.get("id"), DONE if data == DONE else json.loads(data))


def read_stream(text: str, headers: dict[str, str] | None = None) -> Stream:
    assert text == "" or text.endswith("\n\n"), text[-200:]
    blocks = [read_block(part.strip("\n")) for part in text.split("\n\n") if part.strip("\n")]
    return Stream(
        [block for block in blocks if isinstance(block, Event)],
        [block for block in blocks if isinstance(block, str)],
        headers or {},
    )


async def post_stream(
    session: aiohttp.ClientSession,
    url: str,
    *,
    headers: dict[str, str] | None = None,
    data: aiohttp.FormData | None = None,
    **fields: Any,
) -> Stream:
    """Post a streaming request, as JSON or as this form, and read the answer to its end."""
    body: dict[str, Any] = {"data": data} if data else {"json": {**SMALL, "stream": True, **fields}}
    async with session.post(url, headers=headers, **body) as answer:
        assert answer.status == 200, await answer.text()
        return read_stream(await answer.text(), dict(answer.headers))


async def get_stream(session: aiohttp.ClientSession, url: str, **headers: str) -> Stream:
    async with session.get(url, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return read_stream(await answer.text(), dict(answer.headers))


async def eventually(what: str, look: Callable[[], Awaitable[T | None]]) -> T:
    """The first true value that `look` gives; fails with `what` after the deadline."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if value := await look():
            return value
        await asyncio.sleep(0.01)
    raise AssertionError(f"did not happen: {what}")


async def job_in_state(app: App, status: str, job_id: str | None = None) -> Any:
    """The job object (of the newest job if none is named) as soon as it has this status."""

    async def look() -> Any:
        _, body = await app.get("/v1/jobs")
        jobs = [job for job in body["data"] if job_id in (None, job["id"])]
        return jobs[0] if jobs and jobs[0]["status"] == status else None

    return await eventually(f"a job is {status}", look)


async def start_job(app: App, status: str = "running", **fields: Any) -> tuple[asyncio.Task[Any], Any]:
    """A waiting request in the background, and its job as soon as it has this status."""
    _, before = await app.get("/v1/jobs")
    task = asyncio.create_task(app.post(GENERATIONS, **{**SMALL, **fields}))

    async def look() -> Any:
        _, body = await app.get("/v1/jobs")
        new = body["data"][: len(body["data"]) - len(before["data"])]
        return new[0] if new and new[0]["status"] == status else None

    return task, await eventually(f"the new job is {status}", look)


def picture(data: bytes | str | None) -> Image.Image:
    """The decoded picture of a file or of base64 text."""
    assert data
    image = Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data))
    image.load()
    return image


def noise(width: int = 128, height: int = 128) -> Image.Image:
    """A picture in which no two pixels agree but by chance."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
