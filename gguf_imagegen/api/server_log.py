"""The latest lines of the server's log, for admins: as a list, or followed as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

from aiohttp import web

from gguf_imagegen.api import answers
from gguf_imagegen.api.callers import admins_only
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import ADMIN, EVENTS, endpoint
from gguf_imagegen.api.paging import LIMIT, limit_of
from gguf_imagegen.api.reply import reply
from gguf_imagegen.api.streams.frames import HEARTBEAT, frame
from gguf_imagegen.api.streams.writing import Silence, send
from gguf_imagegen.machine.logs import Line, Tail
from gguf_imagegen.service import Service
from gguf_imagegen.vocabulary.errors import InvalidRequest

USUAL = 100
TAIL = web.AppKey("tail", Tail)


async def lines_are_kept(app: web.Application) -> AsyncIterator[None]:
    """While the server runs; a new line wakes those who follow."""
    loop, news = asyncio.get_running_loop(), app[SERVICE].scheduler.news

    def told() -> None:
        with suppress(RuntimeError):  # a thread may log after the loop has ended
            loop.call_soon_threadsafe(news.wake)

    app[TAIL].attach(told)
    try:
        yield
    finally:
        app[TAIL].detach()


@endpoint(answers.LogList, errors=(*ADMIN, InvalidRequest), params=(LIMIT,))
@admins_only
async def log_lines(request: web.Request) -> web.Response:
    """GET /v1/logs: the latest lines, the newest last; `limit` of 100, at most 200."""
    limit = limit_of(request, USUAL)
    lines = request.app[TAIL].since(0)[-limit:]
    return reply(answers.LogList, {"object": "list", "data": [_view(line) for line in lines]})


@endpoint(None, errors=ADMIN, media=(EVENTS,), events="A line of the log each, without an end.")
@admins_only
async def log_events(request: web.Request) -> web.StreamResponse:
    """GET /v1/logs/events: the lines that are kept, at most 500, and each that follows."""
    return await send(request, partial(_frames, request.app[SERVICE], request.app[TAIL]))


async def _frames(service: Service, tail: Tail, silence: Silence) -> AsyncGenerator[bytes, None]:
    seen = 0
    yield HEARTBEAT
    while not service.scheduler.draining:
        lines = tail.since(seen)
        yield b"".join(frame(_view(line), id=line.number) for line in lines)
        if lines:
            seen = lines[-1].number
            await asyncio.sleep(service.waits.together)
        else:
            await service.scheduler.news.wait(silence.left)


def _view(line: Line) -> dict[str, Any]:
    return {"id": line.number, "created": round(line.at, 3), "level": line.level, "message": line.text}
