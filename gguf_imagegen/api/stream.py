"""Following a job over HTTP: streamed, or waited for; what happens when the client leaves."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from aiohttp import web

from gguf_imagegen.api.frames import HEADERS, HEARTBEAT, error_frame
from gguf_imagegen.api.keys import SCHEDULER, SETTINGS
from gguf_imagegen.api.retries import ATTEMPTS, read_timeout
from gguf_imagegen.api.sse import Encoder
from gguf_imagegen.errors import ImagegenError
from gguf_imagegen.jobs.job import Job

log = logging.getLogger(__name__)
WRITE_TIMEOUT = 120.0
"""Seconds for which a client may refuse to take a frame."""

TASKS = web.AppKey("background_tasks", set[asyncio.Task[None]])


async def stream_job(
    request: web.Request, job: Job, encoder: Encoder, *, start: int = 0, cancel_on_leave: bool
) -> web.StreamResponse:
    """Send the job's events from index `start` on, with heartbeats, to the end.

    A client that leaves, or takes nothing for WRITE_TIMEOUT seconds, cancels the job if it asked so.
    """
    response = web.StreamResponse(headers={**HEADERS, "X-Job-Id": job.id})
    with _leaving(request, job, cancel_on_leave):
        await response.prepare(request)
        try:
            await _send_events(response, job, encoder, start, request.app[SETTINGS].heartbeat)
        except ImagegenError as exc:  # an image is gone, and the 200 is sent already
            await _write(response, error_frame(exc))
        await response.write_eof()
    return response


@contextmanager
def _leaving(request: web.Request, job: Job, cancel: bool) -> Iterator[None]:
    """What happens when the client is gone before the end of this block."""
    try:
        with request.app[ATTEMPTS].following(job):
            yield
    except (ConnectionError, asyncio.CancelledError, asyncio.TimeoutError) as exc:
        if cancel:
            _cancel_later(request, job)
        if isinstance(exc, asyncio.CancelledError):
            raise
        if request.transport is not None:  # else an error answer would end up inside the stream
            request.transport.abort()


async def _send_events(
    response: web.StreamResponse, job: Job, encoder: Encoder, start: int, heartbeat: float
) -> None:
    index = start
    for past in range(min(start, len(job.events))):
        encoder.encode(past, job.events[past])
    while not (job.ended and index >= len(job.events)):
        if not await job.more_than(index, heartbeat):
            if not job.ended:
                await _write(response, HEARTBEAT)
            continue
        data = encoder.encode(index, job.events[index])
        index += 1
        if data:
            await _write(response, data)


async def _write(response: web.StreamResponse, data: bytes) -> None:
    await asyncio.wait_for(response.write(data), WRITE_TIMEOUT)


async def wait_for_job(request: web.Request, job: Job, *, cancel_on_leave: bool) -> None:
    """Wait for the end and raise the job's error, if any."""
    with _leaving(request, job, cancel_on_leave):
        await job.wait()
    if job.error is not None:
        raise job.error


async def answer_job(
    request: web.Request, job: Job, body: Callable[[], dict[str, Any]], *, cancel_on_leave: bool
) -> web.StreamResponse:
    """`body` as JSON at the job's end; it reads files, so it is called in a thread.

    A client that says how long it waits for a byte gets blanks before the JSON from half of that time on.
    The status is 200 from then on, and a failure is told in the body alone.
    """
    pause = (read_timeout(request) or math.inf) / 2
    response = web.StreamResponse(headers={"X-Job-Id": job.id})
    response.content_type = "application/json"
    with _leaving(request, job, cancel_on_leave):
        if await _ends_within(job, pause):
            if job.error is not None:
                raise job.error
            return web.json_response(await asyncio.to_thread(body), headers={"X-Job-Id": job.id})
        await response.prepare(request)
        while not await _ends_within(job, pause):
            await _write(response, b" ")
        content = job.error.body() if job.error is not None else await asyncio.to_thread(body)
        await _write(response, json.dumps(content).encode())
        await response.write_eof()
    return response


async def _ends_within(job: Job, seconds: float) -> bool:
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(job.wait(), seconds if math.isfinite(seconds) else None)
    return job.ended


def _cancel_later(request: web.Request, job: Job) -> None:
    """Cancel from a handler that is itself being cancelled, unless the client comes back for the job."""
    if job.ended:
        return
    log.info("job %s: the client left", job.id)
    attempts = request.app[ATTEMPTS]
    task = asyncio.ensure_future(_cancel_if_abandoned(request.app, job, attempts.patience(request, job)))
    request.app[TASKS].add(task)
    task.add_done_callback(request.app[TASKS].discard)


async def _cancel_if_abandoned(app: web.Application, job: Job, patience: float) -> None:
    if patience:
        await _ends_within(job, patience)
    if app[ATTEMPTS].abandoned(job):
        await app[SCHEDULER].cancel(job, "the client left")
