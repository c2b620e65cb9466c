"""Survival of clients that leave, dawdle or come all at once, and of a disk that is full."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gguf_imagegen.vocabulary.waits import Waits
from tests.conftest import DEADLINE, RunningApp, ServerProcess
from tests.survival import (
    GENERATIONS,
    SMALL,
    Client,
    client_of,
    eventually,
)

pytestmark = pytest.mark.posix

Serve = Callable[..., ServerProcess]


class Dawdler:
    """A client that reads a stream byte by byte, through the smallest window there is."""

    def __init__(self, url: str, path: str, body: dict[str, Any]) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect((address.hostname, address.port))
        data = json.dumps({**SMALL, "stream": True, **body}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self.socket.sendall(head.encode() + data)
        self.socket.setblocking(False)
        self.got = b""

    async def read(self, count: int) -> bytes:
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, count), DEADLINE)
        self.got += data
        return data

    async def job(self) -> str:
        """The id of its job, from the headers."""
        while b"\r\n\r\n" not in self.got:
            assert await self.read(1)
        lines = self.got.decode().split("\r\n")
        return next(line.split(": ")[1] for line in lines if line.startswith("X-Job-Id"))

    def leave(self) -> None:
        self.socket.close()


async def test_one_byte_at_a_time(own: ServerProcess) -> None:
    """A client that takes a byte between two requests of others delays none of them and loses nothing."""
    async with client_of(own) as client:
        dawdler = Dawdler(own.url, GENERATIONS, {"size": "128x128", "steps": 20})
        job = await dawdler.job()
        for _ in range(5):
            assert len(await dawdler.read(1)) == 1
            began = time.monotonic()
            assert (await client.make()).status == 200
            assert time.monotonic() - began < DEADLINE / 2
        assert (await client.has_status(job, "succeeded"))["step"] == 20
        while await dawdler.read(1 << 16):
            pass
        assert dawdler.got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        dawdler.leave()


# -- the flood ----------------------------------------------------------------------------------------


async def test_two_hundred_at_once(own: ServerProcess) -> None:
    """A queue of 16 takes what it can; the rest get a 429 with Retry-After. None is lost, none hangs."""
    async with client_of(own) as client:
        answers = await asyncio.wait_for(asyncio.gather(*(client.make() for _ in range(200))), DEADLINE)
        good = [answer for answer in answers if answer.status == 200]
        full = [answer for answer in answers if answer.status == 429]
        assert len(good) + len(full) == 200
        assert 16 <= len(good) < 60
        assert all(answer.picture().size == (64, 64) for answer in good)
        assert len({answer.body["id"] for answer in good}) == len(good)
        assert all(answer.code == "queue_full" for answer in full)
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in full)
        assert all(answer.headers["x-should-retry"] == "true" for answer in full)
        assert (await client.get("/health")).body["queue"] == 0


async def test_a_hundred_that_leave_at_once(own: ServerProcess) -> None:
    """Clients that come and go all at once leave neither a job nor a full queue behind."""
    async with client_of(own) as client:
        tasks = [asyncio.create_task(client.make(steps=100)) for _ in range(100)]

        async def full() -> bool:
            health = (await client.get("/health")).body  # one of the 16 may have begun since
            return bool(health["queue"] >= 15 and health["running"])

        await eventually("the queue is full", full)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        async def over() -> bool:
            jobs = (await client.get("/v1/jobs?limit=200")).body["data"]
            return all(job["ended"] is not None for job in jobs)

        await eventually("all jobs have ended", over)
        health = (await client.get("/health")).body
        assert (health["queue"], health["running"]) == (0, None)


# -- a client that takes nothing ----------------------------------------------------------------------


class BigResults:
    """Gives every image as six megabytes, more than all buffers on the way hold together."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    def get(self, name: str) -> bytes:
        self.asked.set()
        return bytes(6 << 20)


@pytest.mark.parametrize("end", ["leaves", "stays"])
async def test_a_big_frame_that_is_not_taken(
    running: RunningApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    """In the middle of a frame of megabytes a client leaves, or takes nothing for too long: others go on.

    What it got of the stream is a beginning of it, without another answer mixed in.
    """
    async with running(threads=1, waits=Waits(unread=1.0 if end == "stays" else DEADLINE)) as app:
        client = Client(app.url, app.session)
        big = BigResults()
        monkeypatch.setattr(app.scheduler.results, "get", big.get)
        dawdler = Dawdler(
            app.url, GENERATIONS, {"n": 4, "steps": 100, "stream_options": {"dialect": "openai"}}
        )
        job = await dawdler.job()
        await asyncio.wait_for(big.asked.wait(), DEADLINE)
        if end == "leaves":
            dawdler.leave()
        await client.has_status(job, "cancelled")
        monkeypatch.undo()
        await client.still_serves()
        if end == "stays":
            with contextlib.suppress(ConnectionError):
                while await dawdler.read(1 << 20):
                    pass
            assert dawdler.got.count(b"HTTP/1.1") == 1
            assert b"internal_error" not in dawdler.got
            dawdler.leave()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_big_answer_that_is_not_taken(
    running: RunningApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client of a whole answer of megabytes that reads nothing of it is cut off; its handler ends."""
    async with running(threads=1, waits=Waits(unread=1.0)) as app:
        monkeypatch.setattr(app.scheduler.results, "get", BigResults().get)
        dawdler = Dawdler(app.url, GENERATIONS, {"stream": False, "response_format": "b64_json"})
        await dawdler.job()
        await eventually("its handler has ended", _all_written)
        with contextlib.suppress(ConnectionError):
            while await dawdler.read(1 << 20):
                pass
        assert len(dawdler.got) < 8 << 20
        dawdler.leave()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def _all_written() -> bool:
    """Whether no whole answer is being written."""
    return not [task for task in asyncio.all_tasks() if "_whole" in repr(task.get_coro())]


# -- the disk -----------------------------------------------------------------------------------------


async def assert_delivered(client: Client, *, warned: bool) -> None:
    """The image comes as base64 and by URL, the same bytes; a warning tells of a disk that refused."""
    answer = await client.make()
    assert answer.picture().size == (64, 64)
    assert any("could not be written" in warning for warning in answer.body["warnings"]) is warned
    async with client.session.get(answer.body["data"][0]["url"]) as file:
        assert file.status == 200
        assert await file.read() == base64.b64decode(answer.body["data"][0]["b64_json"])
    async with await client.stream() as stream:
        assert (await stream.end()).data == "[DONE]"
        assert stream.frames[-2].item["b64_json"]


async def test_a_result_folder_that_cannot_be(serve: Serve, tmp_path: Path) -> None:
    """With a file where the result folder should be, images are delivered from memory, with a warning."""
    (tmp_path / "file").write_text("in the way")
    server = serve("--threads", "1", "--output-dir", str(tmp_path / "file" / "results"))
    server.wait_until_ready()
    async with client_of(server) as client:
        await assert_delivered(client, warned=True)
    assert "keeping it in memory" in server.log()


async def test_a_disk_that_is_full_for_a_while(serve: Serve, tmp_path: Path) -> None:
    """While no file can grow, images are delivered from memory; afterwards they are on disk again."""
    server = serve("--threads", "1", "--ephemeral", "--output-dir", str(tmp_path))
    server.wait_until_ready()
    pid = server.process.pid
    async with client_of(server) as client:
        await assert_delivered(client, warned=False)
        whole = {path.name for path in tmp_path.iterdir()}
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (100, limits[1]))
        await assert_delivered(client, warned=True)
        assert {path.name for path in tmp_path.iterdir()} == whole
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        await assert_delivered(client, warned=False)
        assert len(list(tmp_path.iterdir())) == len(whole) + 2
