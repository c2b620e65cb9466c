"""A small real server that this one calls: it keeps what it gets, and answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass(frozen=True)
class Call:
    """What was sent: path with query, headers, and the body."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Endpoint:
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)


Answer = Callable[[Call], Awaitable[web.StreamResponse]]


async def fine(call: Call) -> web.StreamResponse:
    return web.json_response({})


async def never(call: Call) -> web.StreamResponse:
    """Takes the request and says nothing."""
    await asyncio.Event().wait()
    raise AssertionError


@asynccontextmanager
async def endpoint(answer: Answer = fine) -> AsyncIterator[Endpoint]:
    """Listens on a free port of this machine."""
    here = Endpoint()

    async def take(request: web.BaseRequest) -> web.StreamResponse:
        call = Call(request.path_qs, dict(request.headers), await request.read())
        here.calls.append(call)
        here.came.set()
        return await answer(call)

    runner = web.ServerRunner(
        web.Server(take, handler_cancellation=True, access_log=None), shutdown_timeout=0
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        here.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield here
    finally:
        await runner.cleanup()
