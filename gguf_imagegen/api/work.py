"""From a dialect's fields to a job, and from a job to its pictures: the one way for all dialects."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from aiohttp import web

from gguf_imagegen import images
from gguf_imagegen.api import body, pixels
from gguf_imagegen.api.keys import CATALOG, DEFAULT_MODEL, REQUEST_IDS, SCHEDULER, SETTINGS
from gguf_imagegen.api.retries import ATTEMPTS
from gguf_imagegen.api.shapes import job_object
from gguf_imagegen.api.stream import wait_for_job
from gguf_imagegen.api.urls import base_url, file_url
from gguf_imagegen.catalog.entry import Capability, Entry
from gguf_imagegen.errors import UnsupportedOperation
from gguf_imagegen.jobs.bounds import Bounds
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.jobs.plan import Operation, Sketch, sketch
from gguf_imagegen.schema.extra_args import with_extra_args
from gguf_imagegen.schema.request import ImageRequest, parse_request


@dataclass(frozen=True)
class Work:
    """A job, and the request that asked for it, without the files in it."""

    job: Job
    wanted: ImageRequest

    @property
    def cancel_on_leave(self) -> bool:
        return self.wanted.on_disconnect == "cancel"


async def begin(
    request: web.Request, fields: Mapping[str, Any], operation: Operation, *, extra_args: bool = True
) -> Work:
    """Queue a job made from fields by their canonical names or any alias; refuses before it queues.

    With `extra_args` the prompt may hold fields of sd.cpp's in `<sd_cpp_extra_args>`.
    """
    work = await _begin(request, fields, operation, extra_args)
    body.let_go(request)
    return replace(work, wanted=work.wanted.without_files())


async def _begin(
    request: web.Request, fields: Mapping[str, Any], operation: Operation, extra_args: bool
) -> Work:
    wanted, warnings = await asyncio.to_thread(_parsed, fields, extra_args)
    attempt = await request.app[ATTEMPTS].of(request, fields)
    if attempt is None:
        return Work(await _submit(request.app, wanted, operation, warnings), wanted)
    async with attempt.lock:
        job = attempt.joinable or await _submit(request.app, wanted, operation, warnings)
        attempt.job = job
    return Work(job, wanted)


def _parsed(fields: Mapping[str, Any], extra_args: bool) -> tuple[ImageRequest, list[str]]:
    return parse_request(with_extra_args(fields) if extra_args else fields)


async def _submit(
    app: web.Application, wanted: ImageRequest, operation: Operation, warnings: list[str]
) -> Job:
    app[SCHEDULER].check_room()
    entry = pick_model(app, wanted.model)
    app[CATALOG].require_on_disk(entry)
    app[SCHEDULER].check_engine(None if operation == "upscale" else entry)
    sketched = await asyncio.to_thread(_sketch, app, entry, wanted, operation, warnings)
    job = app[SCHEDULER].submit(await pixels.in_turn(app, sketched.memory, sketched.plan))
    if wanted.request_id:
        _remember(app, wanted.request_id, job)
    return job


def _sketch(
    app: web.Application, entry: Entry, wanted: ImageRequest, operation: Operation, warnings: list[str]
) -> Sketch:
    """All that can be refused is refused here, before a picture is decoded."""
    _require_able(app, entry, wanted, operation)
    return sketch(wanted, entry, app[SETTINGS], operation, warnings)


def _remember(app: web.Application, request_id: str, job: Job) -> None:
    """The client's own name of its job, for as long as the scheduler knows the job."""
    names, jobs = app[REQUEST_IDS], app[SCHEDULER].jobs
    for old in [name for name, job_id in names.items() if job_id not in jobs]:
        del names[old]
    names[request_id] = job.id


def pick_model(app: web.Application, name: str | None) -> Entry:
    """The named model, or the default one."""
    return app[CATALOG].get(name or app[DEFAULT_MODEL].id)


def _require_able(app: web.Application, entry: Entry, wanted: ImageRequest, operation: Operation) -> None:
    """UnsupportedOperation, naming the models on this machine that can, if this one cannot."""
    needed: tuple[Capability, ...]
    count = len(wanted.image)
    if operation == "upscale":
        return
    if not count:
        what, param, needed = "text to image", "model", ("text-to-image",)
    elif count > 1:
        what, param, needed = f"edits of {count} images", "image", ("reference-edit",)
    elif wanted.mask is not None or images.may_be_transparent(wanted.image[0]):
        what, param, needed = "edits with a mask", "mask", ("inpainting", "reference-edit")
    else:
        what, param, needed = "image to image", "image", ("image-to-image", "reference-edit")

    def can(each: Entry) -> bool:
        return bool(set(needed) & set(each.capabilities)) and count <= Bounds.of(each, app[SETTINGS]).images

    if not can(entry):
        able = [each for each in app[CATALOG].entries if can(each)]
        here = sorted({each.id for each in able if app[CATALOG].on_disk(each)})
        there = sorted({each.id for each in able if each.sources and not each.unsupported})
        names = "no model of the catalog can"
        if here:
            names = f"{', '.join(here)} can"
        elif there:
            names = f"pull one that can: {', '.join(there[:8])}"
        raise UnsupportedOperation(f"{param}: {entry.id} cannot do {what}; {names}", param=param)


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
    return web.json_response(
        job_object(job, request.app[SCHEDULER], partial(file_url, request)),
        status=202,
        headers={
            "Location": f"{base_url(request)}/v1/jobs/{job.id}",
            "Preference-Applied": "respond-async",
            "X-Job-Id": job.id,
        },
    )
