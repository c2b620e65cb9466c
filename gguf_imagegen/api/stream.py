"""Following a job over HTTP: streamed, or waited for; what happens when the client leaves."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from gguf_imagegen.api.keys import SCHEDULER, SETTINGS
from gguf_imagegen.api.sse import HEADERS, HEARTBEAT, Encoder, error_frame
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
    try:
        await response.prepare(request)
        try:
            await _send_events(response, job, encoder, start, request.app[SETTINGS].heartbeat)
        except ImagegenError as exc:  # an image is gone, and the 200 is sent already
            await _write(response, error_frame(exc))
        await response.write_eof()
    except (ConnectionError, asyncio.CancelledError, asyncio.TimeoutError) as exc:
        if cancel_on_leave:
            cancel_later(request.app, job)
        if isinstance(exc, asyncio.CancelledError):
            raise
        if request.transport is not None:  # else an error answer would end up inside the stream
            request.transport.abort()
    return response


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
    try:
        await job.wait()
    except asyncio.CancelledError:
        if cancel_on_leave:
            cancel_later(request.app, job)
        raise
    if job.error is not None:
        raise job.error


def cancel_later(app: web.Application, job: Job) -> None:
    """Cancel from a handler that is itself being cancelled."""
    if job.ended:
        return
    log.info("job %s: the client left", job.id)
    task = asyncio.ensure_future(app[SCHEDULER].cancel(job, "the client left"))
    app[TASKS].add(task)
    task.add_done_callback(app[TASKS].discard)
