"""Following a job over HTTP: streamed, or waited for; what happens when the client leaves."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from aiohttp import web
from pydantic import BaseModel

from gguf_imagegen.api.dialect import DIALECTS
from gguf_imagegen.api.idempotency import ATTEMPTS, read_timeout
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.reply import encoded, reply
from gguf_imagegen.api.streams.encoders import Encoder
from gguf_imagegen.api.streams.frames import HEADERS, HEARTBEAT, frames_of
from gguf_imagegen.api.streams.writing import Silence, hang_up, send
from gguf_imagegen.jobs.job import Ended, Job, Queued
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.vocabulary.errors import ImagegenError

log = logging.getLogger(__name__)
PLACES = 1.0
"""Seconds after which a waiting client's place in the queue is looked at again."""

TASKS = web.AppKey("background_tasks", set[asyncio.Task[None]])


async def stream_job(
    request: web.Request,
    job: Job,
    encoder: Encoder,
    *,
    start: int = 0,
    cancel_on_leave: bool,
    frame_by_frame: bool = False,
    heartbeat: bytes = HEARTBEAT,
) -> web.StreamResponse:
    """Send the job's events from the one at place `start` on, with heartbeats, to the end; with
    `frame_by_frame` each frame is a write of its own.

    A client that leaves, or takes nothing for too long, cancels the job if it asked so.
    """
    return await send(
        request,
        partial(_events, request.app[SERVICE].scheduler, job, encoder, start, frame_by_frame),
        headers={**HEADERS, "X-Job-Id": job.id},
        heartbeat=heartbeat,
        leaving=leaving(request, job, cancel_on_leave),
    )


@contextmanager
def leaving(request: web.Request, job: Job, cancel: bool) -> Iterator[None]:
    """What happens when the client is gone before the end of this block."""
    try:
        with request.app[ATTEMPTS].following(job):
            yield
    except (ConnectionError, asyncio.CancelledError, asyncio.TimeoutError) as exc:
        if cancel:
            _cancel_later(request, job)
        if isinstance(exc, asyncio.CancelledError):
            raise
        hang_up(request)


async def _events(
    scheduler: Scheduler, job: Job, encoder: Encoder, start: int, frame_by_frame: bool, silence: Silence
) -> AsyncGenerator[bytes, None]:
    place, pause = start, Pause(scheduler, job, silence)
    try:
        for past in range(start):
            encoder.encode(job.ids[past], job.events[past])
        while not (job.ended and place >= len(job.events)):
            if await job.more_than(place, pause.left):
                data = encoder.encode(job.ids[place], job.events[place])
                place += 1
            else:
                data = pause.words(encoder)
            for part in frames_of(data) if frame_by_frame and data else (data,):
                yield part
    except ImagegenError as exc:  # an image is gone, and the 200 is sent already
        yield encoder.encode(None, Ended(exc))


class Pause:
    """A time without news of the job: a place in the queue that has changed is told.

    The ETA, which changes all the time, is told in the place of a heartbeat.
    """

    def __init__(self, scheduler: Scheduler, job: Job, silence: Silence) -> None:
        self._scheduler = scheduler
        self._job = job
        self._silence = silence
        self._told = next((each for each in job.events[:1] if isinstance(each, Queued)), None)

    @property
    def left(self) -> float:
        """Seconds until there may be something to say."""
        left = self._silence.left
        return left if self._told is None else min(left, PLACES)

    def words(self, encoder: Encoder) -> bytes:
        """What is to be said now, perhaps nothing."""
        told, self._told = self._told, self._place()
        if self._told is None or self._told == told:
            return b""
        moved = told is not None and self._told.position != told.position
        return encoder.encode(None, self._told) if moved or not self._silence.left else b""

    def _place(self) -> Queued | None:
        position = self._scheduler.position(self._job)
        return None if position is None else Queued(position, self._scheduler.eta(self._job))


async def wait_for_job(request: web.Request, job: Job, *, cancel_on_leave: bool) -> None:
    """Wait for the end and raise the job's error, if any."""
    with leaving(request, job, cancel_on_leave):
        await job.wait()
    if job.error is not None:
        raise job.error.bare()


async def answer_job(
    request: web.Request,
    job: Job,
    model: type[BaseModel],
    body: Callable[[], object],
    *,
    cancel_on_leave: bool,
) -> web.StreamResponse:
    """The model's answer of `body` at the job's end; it reads files, so it is made in a thread.

    A client that says how long it waits for a byte gets blanks before the JSON from half of that time on.
    The status is 200 from then on, and a failure is told in the body alone.
    """
    pause = (read_timeout(request) or math.inf) / 2
    with leaving(request, job, cancel_on_leave):
        await _ends_within(job, pause)
    if job.ended:
        if job.error is not None:
            raise job.error.bare()
        return await asyncio.to_thread(lambda: reply(model, body()))

    async def blanks(_: Silence) -> AsyncGenerator[bytes, None]:
        while not await _ends_within(job, pause):
            yield b" "
        if job.error is not None:
            form = request.app[DIALECTS].of(request).errors
            yield encoded(form.model, form.body(job.error))
        else:
            yield await asyncio.to_thread(lambda: encoded(model, body()))

    return await send(
        request,
        blanks,
        headers={"Content-Type": "application/json"},
        leaving=leaving(request, job, cancel_on_leave),
    )


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
        await app[SERVICE].scheduler.cancel(job, "the client left")
