"""From a dialect's fields to a job, and from a job to its pictures: the one way for all dialects."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from gguf_imagegen.api.keys import CATALOG, DEFAULT_MODEL, SCHEDULER, SETTINGS
from gguf_imagegen.api.shapes import job_object
from gguf_imagegen.api.stream import wait_for_job
from gguf_imagegen.api.urls import base_url, file_url
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.jobs.plan import Operation, plan
from gguf_imagegen.schema.request import ImageRequest, parse_request


@dataclass(frozen=True)
class Work:
    """A job, and the request that asked for it."""

    job: Job
    wanted: ImageRequest

    @property
    def cancel_on_leave(self) -> bool:
        return self.wanted.on_disconnect == "cancel"


async def begin(request: web.Request, fields: Mapping[str, Any], operation: Operation) -> Work:
    """Queue a job made from fields by their canonical names or any alias; refuses before it queues."""
    app = request.app
    app[SCHEDULER].check_room()
    wanted, warnings = parse_request(fields)
    entry = pick_model(app, wanted.model)
    app[CATALOG].require_on_disk(entry)
    job_plan = await asyncio.to_thread(plan, wanted, entry, app[SETTINGS], operation, warnings)
    return Work(app[SCHEDULER].submit(job_plan), wanted)


def pick_model(app: web.Application, name: str | None) -> Entry:
    """The named model, or the default one."""
    return app[CATALOG].get(name or app[DEFAULT_MODEL].id)


async def finish(request: web.Request, work: Work) -> list[bytes]:
    """Wait for the end; the encoded pictures in order. Raises the job's error."""
    await wait_for_job(request, work.job, cancel_on_leave=work.cancel_on_leave)
    return await asyncio.to_thread(pictures, request.app, work.job)


def pictures(app: web.Application, job: Job) -> list[bytes]:
    """The encoded pictures made so far. Reads files: call it in a thread."""
    return [app[SCHEDULER].results.get(image.name) for image in job.images]


def prefers_async(request: web.Request) -> bool:
    """RFC 7240's `Prefer: respond-async`."""
    wishes = ",".join(request.headers.getall("Prefer", ())).split(",")
    return any(wish.split(";")[0].strip().lower() == "respond-async" for wish in wishes)


def accepted(request: web.Request, job: Job) -> web.Response:
    """202 with the job object, and where to look for its end."""
    eta = request.app[SCHEDULER].eta(job)
    return web.json_response(
        job_object(job, eta, partial(file_url, request)),
        status=202,
        headers={
            "Location": f"{base_url(request)}/v1/jobs/{job.id}",
            "Preference-Applied": "respond-async",
            "X-Job-Id": job.id,
        },
    )
