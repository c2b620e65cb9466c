"""What the survival tests share: a client that sees every byte of a stream, and ways to hold a worker."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
import numpy as np
import psutil
from PIL import Image

from tests.conftest import DEADLINE, ServerProcess

T = TypeVar("T")
POLL = 0.01
GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
SMALL = {"prompt": "a cat", "steps": 1, "size": "64x64"}
TIMEOUT = aiohttp.ClientTimeout(total=DEADLINE)


async def eventually(what: str, look: Callable[[], Awaitable[T | None]]) -> T:
    """The first true value that `look` gives; fails with `what` after the deadline."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if value := await look():
            return value
        await asyncio.sleep(POLL)
    raise AssertionError(f"did not happen: {what}")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any

    @property
    def code(self) -> Any:
        """The error's code, None if this is no error."""
        return self.body["error"]["code"] if "error" in self.body else None

    @property
    def message(self) -> str:
        return str(self.body["error"]["message"])

    def picture(self, index: int = 0) -> Image.Image:
        """The image, fully decoded."""
        assert self.status == 200, self.body
        image = Image.open(io.BytesIO(base64.b64decode(self.body["data"][index]["b64_json"])))
        image.load()
        return image


@dataclass(frozen=True)
class Frame:
    """One server-sent event; `data` is "[DONE]" or the JSON."""

    event: str | None
    data: Any

    @property
    def item(self) -> dict[str, Any]:
        """llama-box's item, {} if there is none."""
        items = self.data.get("data") if isinstance(self.data, dict) else None
        return items[0] if items else {}


@dataclass
class Stream:
    """A streamed answer, read frame by frame."""

    answer: aiohttp.ClientResponse
    frames: list[Frame] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    torn: bytes = b""

    @property
    def job(self) -> str:
        return self.answer.headers["X-Job-Id"]

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.answer.close()

    async def read(self) -> AsyncIterator[Frame | str]:
        """Frames and comments; what is left over of an unfinished block is `torn`."""
        lines: list[str] = []
        async for raw in self.answer.content:
            line = raw.decode().rstrip("\n")
            if line:
                lines.append(line)
                continue
            block, lines = _block(lines), []
            if isinstance(block, str):
                self.comments.append(block)
            else:
                self.frames.append(block)
            yield block
        self.torn = "\n".join(lines).encode()

    async def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        async for block in self.read():
            if isinstance(block, Frame) and wanted(block):
                return block
        raise AssertionError(f"the stream ended first: {self.frames[-3:]}")

    async def until_phase(self, phase: str, step: int = 0) -> Frame:
        return await self.until(
            lambda frame: (
                frame.item.get("phase") == phase
                and (phase != "sampling" or frame.item["progressed_steps"] >= step)
            )
        )

    async def until_comment(self, text: str) -> None:
        async for block in self.read():
            if isinstance(block, str) and block.startswith(text):
                return
        raise AssertionError(f"the stream ended first: {self.comments[-3:]}")

    async def end(self) -> Frame:
        """Read to the end, which is whole and either [DONE] or an error; gives that last frame."""
        async for _ in self.read():
            pass
        assert self.torn == b""
        last = self.frames[-1]
        assert last.data == "[DONE]" or last.event == "error", last
        return last

    async def error(self) -> dict[str, Any]:
        """Read to the end, which is an error; gives its body."""
        last = await self.end()
        assert last.event == "error", last
        assert last.data["detail"] == last.data["error"]["message"]
        error: dict[str, Any] = last.data["error"]
        return error


def _block(lines: list[str]) -> Frame | str:
    if all(line.startswith(":") for line in lines):
        return " ".join(line[1:].strip() for line in lines)
    fields = dict(line.split(": ", 1) for line in lines)
    assert set(fields) <= {"event", "data", "id"}, lines
    data = fields["data"]
    return Frame(fields.get("event"), data if data == "[DONE]" else json.loads(data))


class Client:
    """A client of one server."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def send(self, method: str, path: str, **kwargs: Any) -> Answer:
        async with self.session.request(method, self.url + path, **kwargs) as answer:
            return Answer(answer.status, dict(answer.headers), await answer.json())

    async def make(self, path: str = GENERATIONS, **fields: Any) -> Answer:
        return await self.send("POST", path, json={**SMALL, **fields})

    async def raw(self, body: bytes, path: str = GENERATIONS) -> Answer:
        """A body that no JSON encoder of ours would write."""
        return await self.send("POST", path, data=body, headers={"Content-Type": "application/json"})

    async def get(self, path: str) -> Answer:
        return await self.send("GET", path)

    async def stream(self, path: str = GENERATIONS, **fields: Any) -> Stream:
        body = {**SMALL, "stream": True, **fields}
        answer = await self.session.post(self.url + path, json=body)
        assert answer.status == 200, await answer.text()
        return Stream(answer)

    async def job(self, job_id: str) -> Any:
        return (await self.get(f"/v1/jobs/{job_id}")).body

    async def cancel(self, job_id: str) -> Any:
        answer = await self.send("DELETE", f"/v1/jobs/{job_id}")
        assert answer.status == 200, answer
        return answer.body

    async def has_status(self, job_id: str, status: str) -> Any:
        async def look() -> Any:
            job = await self.job(job_id)
            return job if job["status"] == status else None

        return await eventually(f"job is {status}", look)

    async def newest_job(self, but: str = "") -> Any:
        """The newest job, as soon as it is another than `but`."""

        async def look() -> Any:
            jobs = (await self.get("/v1/jobs")).body["data"]
            return jobs[0] if jobs and jobs[0]["id"] != but else None

        return await eventually("there is a job", look)

    async def unload(self) -> None:
        await self.send("POST", "/v1/models/tiny-random/unload")

        async def look() -> bool:
            return not (await self.get("/health")).body["loaded"]

        await eventually("unloaded", look)

    async def still_serves(self) -> None:
        """A normal request gets its picture, and a normal stream its [DONE]."""
        answer = await self.make(steps=2)
        assert answer.picture().size == (64, 64)
        async with await self.stream(steps=2) as stream:
            assert (await stream.end()).data == "[DONE]"


@contextlib.asynccontextmanager
async def client_of_mortal(server: ServerProcess) -> AsyncIterator[Client]:
    """A client of a server that is about to end."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=TIMEOUT, connector=connector, read_bufsize=1 << 24) as session:
        yield Client(server.url, session)


@contextlib.asynccontextmanager
async def client_of(server: ServerProcess) -> AsyncIterator[Client]:
    """A client; afterwards the same server must still serve normal requests."""
    async with client_of_mortal(server) as client:
        yield client
        await client.still_serves()
        assert server.process.poll() is None


async def worker_of(server: ServerProcess, but: int | None = None) -> psutil.Process:
    """The engine's process, as soon as there is one that is not `but`."""

    async def look() -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker = server.worker()
            return worker if worker and worker.pid != but else None
        return None

    return await eventually("there is a worker", look)


async def reaped(process: psutil.Process) -> None:
    """Wait until this process has ended and its parent knows."""

    async def look() -> bool:
        return not process.is_running()

    await eventually("the process is reaped", look)


async def gone(process: psutil.Process) -> None:
    """Wait until this process has ended."""

    async def look() -> bool:
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    await eventually("the process has ended", look)


async def freeze(server: ServerProcess, but: int | None = None) -> psutil.Process:
    """Stop the worker where it is, so that the server stays in this phase."""
    worker = await worker_of(server, but)
    worker.send_signal(signal.SIGSTOP)
    return worker


def crash(worker: psutil.Process) -> None:
    """Have it die of a fault of its own, even if it is frozen."""
    worker.send_signal(signal.SIGSEGV)
    with contextlib.suppress(psutil.NoSuchProcess):  # one that was not frozen may be dead already
        worker.send_signal(signal.SIGCONT)


def png(width: int, height: int, *, seed: int = 0) -> bytes:
    """Noise, so that no two pixels agree by chance and nothing compresses."""
    return encoded(noise(width, height, seed=seed), "PNG")


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def half_mask(width: int, height: int) -> Image.Image:
    """Repaint the left half."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask


def encoded(image: Image.Image, format: str, **kwargs: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **kwargs)
    return out.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
