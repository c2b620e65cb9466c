"""Slow clients get all, those that take nothing are given up; streams have heartbeats and an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientTimeout, web
from aiohttp.test_utils import TestClient, TestServer

from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.streams import writing
from gguf_imagegen.api.streams.frames import HEARTBEAT
from gguf_imagegen.vocabulary.waits import Waits

LIMIT = ClientTimeout(total=60)


class Connection(asyncio.WriteTransport):
    """Has so many bytes left at each look; `taken` is set when they are all gone."""

    def __init__(self, left: Iterator[int]) -> None:
        super().__init__()
        self.left = left
        self.taken = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        left = next(self.left)
        if not left:
            self.taken.set()
        return left


async def send(left: Iterator[int]) -> None:
    """Write to a client that takes a single answer like this."""
    connection = Connection(left)
    service = SimpleNamespace(waits=Waits(unread=0.01))
    request: Any = SimpleNamespace(transport=connection, app={SERVICE: service})

    async def write(data: bytes) -> None:
        await connection.taken.wait()

    response: Any = SimpleNamespace(write=write)
    await asyncio.wait_for(writing.write(request, response, b"x"), 60)


async def test_a_slow_client_gets_all() -> None:
    """It takes ten times as long as one may take nothing, but goes on taking."""
    slow = (size - size % 4 for size in range(4 * 20, -1, -1))
    await send(slow)


async def test_who_takes_nothing_is_given_up() -> None:
    """Also in the middle of an answer."""
    with pytest.raises(asyncio.TimeoutError):
        await send(iter([9, 8, *[7] * (1 + writing.LOOKS)]))


def streaming(frames: writing.Frames) -> TestClient[web.Request, web.Application]:
    """A server of one stream."""
    service: Any = SimpleNamespace(waits=Waits(), settings=SimpleNamespace(heartbeat=0.01))

    async def stream(request: web.Request) -> web.StreamResponse:
        return await writing.send(request, frames)

    app = web.Application()
    app[SERVICE] = service
    app.router.add_get("/", stream)
    return TestClient(TestServer(app))


async def test_heartbeats_only_between_frames() -> None:
    """Whatever has nothing to say gets them, until it has."""
    heard = asyncio.Event()

    async def frames(silence: writing.Silence) -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        while not heard.is_set():
            await asyncio.wait((asyncio.ensure_future(heard.wait()),), timeout=silence.left)
            yield b""
        yield b"data: 2\n\n"

    async with streaming(frames) as client, client.get("/", timeout=LIMIT) as answer:
        assert await answer.content.readuntil(b"\n\n") == b"data: 1\n\n"
        assert await answer.content.readuntil(b"\n\n") == HEARTBEAT
        heard.set()
        *beats, last = (await answer.read()).split(b"\n\n")[:-1]
        assert (set(beats) <= {HEARTBEAT.strip()}, last) == (True, b"data: 2")


async def test_frames_end_when_the_client_leaves() -> None:
    """What makes them is closed at once."""
    closed = asyncio.Event()

    async def frames(silence: writing.Silence) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: 1\n\n"
        finally:
            closed.set()

    async with streaming(frames) as client:
        async with client.get("/", timeout=LIMIT) as answer:
            await answer.content.readuntil(b"\n\n")
            answer.close()
        await asyncio.wait_for(closed.wait(), 60)
