"""Writing to clients with an end: one that takes nothing for too long counts as gone."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, contextmanager, suppress

from aiohttp import web
from aiohttp.typedefs import Handler

from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.streams.frames import HEADERS, HEARTBEAT

LOOKS = 8
"""How often a client that reads nothing is looked at before it counts as gone."""


class Silence:
    """The time since something was written, which a heartbeat ends after so many seconds."""

    def __init__(self, heartbeat: float) -> None:
        self._heartbeat = heartbeat
        self.end()

    @property
    def left(self) -> float:
        """Seconds until the heartbeat."""
        return max(0.0, self._ends - time.monotonic())

    def end(self) -> None:
        """Something was written."""
        self._ends = time.monotonic() + self._heartbeat


Frames = Callable[[Silence], AsyncGenerator[bytes, None]]
"""What to send; an empty frame when there is nothing to say for as long as the silence may last."""


async def send(
    request: web.Request,
    frames: Frames,
    *,
    headers: Mapping[str, str] = HEADERS,
    heartbeat: bytes = HEARTBEAT,
    leaving: AbstractContextManager[None] | None = None,
) -> web.StreamResponse:
    """Stream the frames to their end, with heartbeats; `leaving` handles a client that leaves before."""
    response = web.StreamResponse(headers=headers)
    with leaving or hanging_up(request):
        await response.prepare(request)
        silence = Silence(request.app[SERVICE].settings.heartbeat)
        async with aclosing(frames(silence)) as stream:
            async for data in stream:
                if data or not silence.left:
                    await write(request, response, data or heartbeat)
                    silence.end()
        await response.write_eof()
    return response


@contextmanager
def hanging_up(request: web.Request) -> Iterator[None]:
    """End the connection if the client is gone before the end of this block."""
    try:
        yield
    except (ConnectionError, asyncio.TimeoutError):
        hang_up(request)


async def write(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """The next bytes of a stream; asyncio.TimeoutError when the client does not take them."""
    await _taken(request, response.write(data))


def hang_up(request: web.Request) -> None:
    """End the connection: any further answer would end up inside the one that was begun."""
    if request.transport is not None:
        request.transport.abort()


@web.middleware
async def written_in_time(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whole answers are written here, so that no client holds a handler by reading nothing."""
    response = await handler(request)
    if not response.prepared:
        try:
            with suppress(ConnectionError):
                await _taken(request, _whole(request, response))
        except asyncio.TimeoutError:
            hang_up(request)
    return response


async def _whole(request: web.Request, response: web.StreamResponse) -> None:
    await response.prepare(request)
    await response.write_eof()


async def _taken(request: web.Request, writing: Coroutine[None, None, None]) -> None:
    """Wait for a write, however slow, while the client goes on taking something."""
    task = asyncio.ensure_future(writing)
    timeout = request.app[SERVICE].waits.unread / LOOKS
    try:
        left, idle = math.inf, 0
        while not (await asyncio.wait((task,), timeout=timeout))[0]:
            left, before = _unsent(request), left
            idle = 0 if left < before else idle + 1
            if idle == LOOKS:
                raise asyncio.TimeoutError
        await task
    finally:
        task.cancel()


def _unsent(request: web.Request) -> float:
    """Bytes that the system has not taken yet."""
    transport = request.transport
    return transport.get_write_buffer_size() if isinstance(transport, asyncio.WriteTransport) else 0
