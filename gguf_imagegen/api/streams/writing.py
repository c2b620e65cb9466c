"""Writing to clients with an end: one that takes nothing for too long counts as gone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from contextlib import suppress

from aiohttp import web
from aiohttp.typedefs import Handler

from gguf_imagegen.api.keys import SERVICE

LOOKS = 8
"""How often a client that reads nothing is looked at before it counts as gone."""


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
