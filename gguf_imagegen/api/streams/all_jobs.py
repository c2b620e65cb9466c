"""All jobs of a caller on one connection: what a page that shows several follows, as server-sent events.

What is told is encoded once for all who watch under one address; a follower joins what it has not had yet.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from typing import Any

from aiohttp import web

from gguf_imagegen.api.callers import caller_of
from gguf_imagegen.api.job_answers import JobObject
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import EVENTS, endpoint
from gguf_imagegen.api.streams.frames import HEARTBEAT, b64, frame
from gguf_imagegen.api.streams.writing import Silence, send
from gguf_imagegen.api.urls import file_url
from gguf_imagegen.jobs.job import Ended, ImageReady, Job, JobEvent, PreviewReady, Queued, Started
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.service import Service
from gguf_imagegen.vocabulary.callers import Caller
from gguf_imagegen.vocabulary.errors import InvalidRequest
from gguf_imagegen.vocabulary.events import Loaded, Loading, Notice, PhaseChanged, Progress

MOST_RECENT = 100
PLACES = 1.0
"""Least seconds between two frames with the order of the queue."""
FRAMES_KEPT = 2000


@endpoint(None, media=(EVENTS,), events="JSON frames of every job, without an end; comments as heartbeats.")
async def events(request: web.Request) -> web.StreamResponse:
    """GET /v1/events: the jobs that have not ended, from their start, and all that follow, without an end.

    Each job begins with a frame of type "job", the job object; later ones have its id as `job`. Pictures come
    as URLs, previews as base64. `recent` of the jobs that have ended are told first, by that frame alone.
    """
    scheduler, recent = request.app[SERVICE].scheduler, _recent(request)
    follower = Follower(scheduler, request.app[FRAMES], file_url(request, ""), caller_of(request))
    return await send(request, partial(_frames, request.app[SERVICE], follower, recent))


def _recent(request: web.Request) -> int:
    """How many jobs that have ended shall be told."""
    asked = request.query.get("recent", "0")
    if not asked.isdecimal() or len(asked) > 4 or int(asked) > MOST_RECENT:
        raise InvalidRequest(f"recent: must be a number from 0 to {MOST_RECENT}", param="recent")
    return int(asked)


async def _frames(
    service: Service, follower: Follower, recent: int, silence: Silence
) -> AsyncGenerator[bytes, None]:
    """What has happened, then what happens."""
    yield HEARTBEAT + follower.over(recent)
    while not service.scheduler.draining:
        data = follower.news()
        yield data
        if data:
            await asyncio.sleep(service.waits.together)
        else:
            await service.scheduler.news.wait(max(0.0, min(silence.left, follower.pause)))


class Follower:
    """What one who watches has had, and what is new; `base` is what names of pictures are appended to."""

    def __init__(self, scheduler: Scheduler, frames: Frames, base: str, caller: Caller) -> None:
        self._scheduler = scheduler
        self._frames = frames
        self._base = base
        self._caller = caller
        self._seen = 0
        self._sent: dict[str, int] = {}  # events by job
        self._moves = -1
        self._placed = -math.inf

    def over(self, recent: int) -> bytes:
        """The jobs that have ended: they are not told later, but so many of them now."""
        ended = [
            job for job in self._scheduler.jobs.values() if job.ended and self._caller.may_see(job.caller)
        ]
        self._sent = {job.id: len(job.events) for job in ended}
        told = ended[max(0, len(ended) - recent) :]
        return b"".join(self._frames.job(job, self._base) for job in told)

    def news(self) -> bytes:
        """All that has happened since the last look."""
        news = self._scheduler.news
        jobs = news.since(self._seen, self._scheduler.jobs.values())
        self._seen = news.count
        data = [data for job in jobs if self._caller.may_see(job.caller) for data in self._of(job)]
        if len(self._sent) > len(self._scheduler.jobs):
            self._sent = {id: count for id, count in self._sent.items() if id in self._scheduler.jobs}
        if self.pause <= 0:
            self._moves, self._placed = self._scheduler.queue.moves, time.monotonic()
            data.append(self._frames.queue(self._caller))
        return b"".join(data)

    @property
    def pause(self) -> float:
        """Seconds until the order of the queue should be told: it has changed, or the times in it are old."""
        queue = self._scheduler.queue
        if not queue:
            return math.inf
        return (
            self._placed + (self._frames.again if queue.moves == self._moves else PLACES) - time.monotonic()
        )

    def _of(self, job: Job) -> Iterator[bytes]:
        first, self._sent[job.id] = self._sent.get(job.id, 0), len(job.events)
        if not first:
            yield self._frames.job(job, self._base)
        yield from self._frames.events(job, first, self._base)


class Frames:
    """Frames as they were sent, for whoever else wants the same ones; those with a preview are not kept.

    The times in the order of the queue hold for `again` seconds.
    """

    def __init__(self, scheduler: Scheduler, again: float) -> None:
        self._scheduler = scheduler
        self.again = again
        self._kept: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()

    def job(self, job: Job, base: str) -> bytes:
        """The job object as it is now."""
        return self._once((base, job.id, -len(job.events)), partial(self._job, job, base))

    def events(self, job: Job, first: int, base: str) -> Iterator[bytes]:
        """What happened to the job from event `first` on; of previews only the newest."""
        for id, event in zip(job.ids[first:], job.events[first:], strict=True):
            if not isinstance(event, PreviewReady):
                yield self._once((base, job.id, id), partial(self._event, job, id, event, base))
            elif event is job.last_preview:
                yield frame(self._event(job, id, event, base))

    def queue(self, caller: Caller) -> bytes:
        """Those who wait and may be seen, the next one first, with their places."""
        seen, turn = "" if caller.admin else caller.name, int(time.monotonic() / self.again)
        key = seen, f"queue {turn}", self._scheduler.queue.moves
        return self._once(key, partial(self._queue, caller))

    def _job(self, job: Job, base: str) -> dict[str, Any]:
        view = JobObject.of(job, self._scheduler, base.__add__)
        return {"type": "job", **view.model_dump(exclude_unset=True)}

    def _event(self, job: Job, id: int, event: JobEvent, base: str) -> dict[str, Any]:
        head = {"job": job.id, "index": id, "status": job.status, "progress": round(job.progress, 2)}
        return {**head, "eta": self._scheduler.eta(job), **_words(event, base)}

    def _queue(self, caller: Caller) -> dict[str, Any]:
        waiting = [
            {"job": job.id, "position": position, "eta": self._scheduler.eta(job)}
            for position, job in enumerate(self._scheduler.queue, start=1)
            if caller.may_see(job.caller)
        ]
        return {"type": "queue", "waiting": waiting}

    def _once(self, key: tuple[str, str, int], make: Callable[[], dict[str, Any]]) -> bytes:
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = frame(make())
            if len(self._kept) > FRAMES_KEPT:
                self._kept.popitem(last=False)
        return kept


FRAMES = web.AppKey("frames", Frames)


def _words(event: JobEvent, base: str) -> dict[str, Any]:
    match event:
        case Queued(position=position):
            return {"type": "queued", "position": position}
        case Started():
            return {"type": "started"}
        case Loading(what=what, done=done, total=total):
            return {"type": "loading", "what": what, "done": done, "total": total}
        case Loaded(seconds=seconds, backend=backend):
            return {"type": "loaded", "seconds": seconds, "backend": backend}
        case PhaseChanged(index=image, phase=phase):
            return {"type": "phase", "image": image, "phase": phase}
        case Progress(index=image, phase=phase, step=step, steps=steps):
            return {"type": "progress", "image": image, "phase": phase, "step": step, "steps": steps}
        case PreviewReady(index=image, step=step, data=data):
            return {"type": "preview", "image": image, "step": step, "b64_json": b64(data)}
        case ImageReady(index=image, seed=seed, name=name, width=width, height=height):
            size = {"width": width, "height": height}
            return {"type": "image", "image": image, "seed": seed, "url": base + name, "name": name, **size}
        case Notice(message=message):
            return {"type": "notice", "message": message}
        case Ended(error=error):
            return {"type": "ended", "error": error.body()["error"] if error else None}
