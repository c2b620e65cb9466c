"""All jobs on one connection: what a page that shows several at once follows, as server-sent events."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from aiohttp import web

from gguf_imagegen.api.frames import HEADERS, HEARTBEAT, b64, frame
from gguf_imagegen.api.keys import SCHEDULER, SETTINGS
from gguf_imagegen.api.shapes import job_object
from gguf_imagegen.api.stream import WRITE_TIMEOUT
from gguf_imagegen.api.urls import file_url
from gguf_imagegen.errors import InvalidRequest
from gguf_imagegen.events import Loaded, Loading, Notice, PhaseChanged, Progress
from gguf_imagegen.jobs.job import Ended, ImageReady, Job, JobEvent, PreviewReady, Queued, Started
from gguf_imagegen.jobs.scheduler import Scheduler

MOST_RECENT = 100


async def events(request: web.Request) -> web.StreamResponse:
    """GET /v1/events: every job that has not ended, from its start, and all that follow, without an end.

    Each job begins with a frame of type "job", the job object; later ones have its id as `job`. Pictures come
    as URLs, previews as base64. `recent` of the jobs that have ended are told first, by that frame alone.
    """
    scheduler, recent = request.app[SCHEDULER], _recent(request)
    ended = [job for job in scheduler.jobs.values() if job.ended]
    sent = {job.id: len(job.events) for job in ended}
    url = partial(file_url, request)
    told = [
        frame({"type": "job", **job_object(job, 0.0, url)}) for job in ended[max(0, len(ended) - recent) :]
    ]
    response = web.StreamResponse(headers=HEADERS)
    try:
        await response.prepare(request)
        await _write(response, HEARTBEAT + b"".join(told))
        await _follow(request, response, sent)
        await response.write_eof()
    except (ConnectionError, asyncio.TimeoutError):
        if request.transport is not None:  # else an error answer would end up inside the stream
            request.transport.abort()
    return response


async def _follow(request: web.Request, response: web.StreamResponse, sent: dict[str, int]) -> None:
    """Send what happens, with heartbeats; `sent` has how many events of each job are told already."""
    scheduler = request.app[SCHEDULER]
    while not scheduler.draining:
        data = b"".join(_news(request, scheduler, job, sent) for job in list(scheduler.jobs.values()))
        for id in [id for id in sent if id not in scheduler.jobs]:
            del sent[id]
        if data:
            await _write(response, data)
        else:
            await scheduler.change(request.app[SETTINGS].heartbeat)
            if all(sent.get(job.id) == len(job.events) for job in scheduler.jobs.values()):
                await _write(response, HEARTBEAT)


def _recent(request: web.Request) -> int:
    """How many jobs that have ended shall be told."""
    asked = request.query.get("recent", "0")
    if not asked.isdecimal() or len(asked) > 4 or int(asked) > MOST_RECENT:
        raise InvalidRequest(f"recent: must be a number from 0 to {MOST_RECENT}", param="recent")
    return int(asked)


async def _write(response: web.StreamResponse, data: bytes) -> None:
    await asyncio.wait_for(response.write(data), WRITE_TIMEOUT)


def _news(request: web.Request, scheduler: Scheduler, job: Job, sent: dict[str, int]) -> bytes:
    """Frames of what happened to a job since the last look; of previews only the newest."""
    first = sent.get(job.id, 0)
    if first == len(job.events):
        return b""
    new = list(enumerate(job.events[first:], first))
    sent[job.id] = len(job.events)
    url = partial(file_url, request)
    frames = [] if first else [frame({"type": "job", **job_object(job, scheduler.eta(job), url)})]
    newest = max((index for index, event in new if isinstance(event, PreviewReady)), default=-1)
    for index, event in new:
        if not isinstance(event, PreviewReady) or index == newest:
            head = {"job": job.id, "index": index, "status": job.status, "progress": round(job.progress, 2)}
            frames.append(frame({**head, "eta": scheduler.eta(job), **_words(event, url)}))
    return b"".join(frames)


def _words(event: JobEvent, url: partial[str]) -> dict[str, Any]:
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
            return {"type": "image", "image": image, "seed": seed, "url": url(name), "name": name, **size}
        case Notice(message=message):
            return {"type": "notice", "message": message}
        case Ended(error=error):
            return {"type": "ended", "error": error.body()["error"] if error else None}
