"""The tools of the MCP server: what each does with this server's jobs and models, whatever the transport."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

from aiohttp import web

from gguf_imagegen.api.callers import caller_of
from gguf_imagegen.api.dialects.mcp.arguments import (
    CancelJob,
    EditImage,
    GenerateImage,
    JobStatus,
    Kind,
    ListModels,
    UpscaleImage,
    Waiting,
    parsed,
)
from gguf_imagegen.api.dialects.mcp.following import Tell, follow
from gguf_imagegen.api.dialects.mcp.showing import Shown, job_shown
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.streams.send import leaving
from gguf_imagegen.api.submit import begin
from gguf_imagegen.api.urls import file_url
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.planning.addons import names_in
from gguf_imagegen.planning.plan import Operation
from gguf_imagegen.service import Service
from gguf_imagegen.vocabulary.errors import InvalidRequest, NotFound

FILES = "/v1/images/files/"
NAME = re.compile(r"[\w-]{1,100}\.(png|jpeg|webp)")
JOB = "job_"
PREVIEWS = 3
"""Of each picture, for job_status to show."""
LATEST = 10


@dataclass(frozen=True)
class Call:
    """One call: the HTTP request that it came in, and how its progress is told."""

    request: web.Request
    tell: Tell

    @property
    def service(self) -> Service:
        return self.request.app[SERVICE]

    def job(self, job_id: str) -> Job:
        return self.service.scheduler.get(job_id, caller_of(self.request))

    async def shown(self, job: Job) -> Shown:
        """Raises the error of a job that failed."""
        if job.error is not None and job.status == "failed":
            raise job.error.bare()
        return await asyncio.to_thread(
            job_shown, job, self.service.scheduler, partial(file_url, self.request)
        )


@dataclass(frozen=True)
class Tool(Generic[Kind]):
    """`reads` says that it changes nothing."""

    takes: type[Kind]
    does: Callable[[Call, Kind], Awaitable[Shown]]
    reads: bool = False

    async def __call__(self, call: Call, arguments: Mapping[str, Any]) -> Shown:
        return await self.does(call, parsed(self.takes, arguments))


async def generate(call: Call, wanted: GenerateImage) -> Shown:
    return await _made(call, wanted, wanted.fields(), "generation")


async def edit(call: Call, wanted: EditImage) -> Shown:
    fields = wanted.fields()
    images = [wanted.image] if isinstance(wanted.image, str) else wanted.image
    fields["image"] = [await _file(call, each) for each in images]
    if wanted.mask:
        fields["mask"] = await _file(call, wanted.mask)
    return await _made(call, wanted, fields, "edit")


async def upscale(call: Call, wanted: UpscaleImage) -> Shown:
    fields = wanted.fields()
    fields["upscale"] = fields.pop("factor", wanted.factor)
    fields["image"] = await _file(call, wanted.image)
    fields["upscaler"] = wanted.upscaler or await _first_upscaler(call)
    return await _made(call, wanted, fields, "upscale")


async def list_models(call: Call, wanted: ListModels) -> Shown:
    service = call.service
    entries = await asyncio.to_thread(lambda: list(filter(service.catalog.on_disk, service.catalog.entries)))
    entries.sort(key=lambda entry: entry.id != service.default.id)
    models = [_model(entry, service.default.id) for entry in entries]
    lines = [
        f"{each['id']}{' (default)' * each['default']}: {each['family']}; {', '.join(each['capabilities'])};"
        f" {each['size']}, {each['steps']} steps"
        for each in models
    ]
    return Shown("\n".join(lines) or "no model is on this machine", {"models": models})


async def job_status(call: Call, wanted: JobStatus) -> Shown:
    if wanted.job_id is None:
        return _latest(call)
    job = call.job(wanted.job_id)
    await _wait(call, job, wanted.wait_seconds)
    return await call.shown(job)


async def cancel_job(call: Call, wanted: CancelJob) -> Shown:
    job = call.job(wanted.job_id)
    await call.service.scheduler.cancel(job)
    return Shown(f"{job.id} {job.status}", {"job_id": job.id, "status": job.status})


TOOLS: Mapping[str, Tool[Any]] = {
    "generate_image": Tool(GenerateImage, generate),
    "edit_image": Tool(EditImage, edit),
    "upscale_image": Tool(UpscaleImage, upscale),
    "list_models": Tool(ListModels, list_models, reads=True),
    "job_status": Tool(JobStatus, job_status, reads=True),
    "cancel_job": Tool(CancelJob, cancel_job),
}


async def _made(call: Call, wanted: Waiting, fields: dict[str, Any], operation: Operation) -> Shown:
    """The job's pictures; one that is cut off by its client is cancelled, one that takes longer goes on."""
    work = await begin(call.request, {**fields, "partial_images": PREVIEWS}, operation, lasting=True)
    with leaving(call.request, work.job, cancel=True):
        await _wait(call, work.job, wanted.wait_seconds)
    return await call.shown(work.job)


async def _wait(call: Call, job: Job, seconds: float) -> None:
    await follow(job, call.service.scheduler, call.tell, seconds, call.service.settings.heartbeat)


async def _file(call: Call, given: str) -> str | bytes:
    """A picture of this server's by its address, its name or its job; else as it was given."""
    if given.startswith(JOB):
        job = call.job(given)
        if not job.images:
            raise InvalidRequest(f"image: {job.id} has no picture, it is {job.status}", param="image")
        given = job.images[0].name
    name = given.rsplit(FILES, 1)[-1].split("?")[0]
    if not NAME.fullmatch(name):
        return given
    try:
        return await asyncio.to_thread(call.service.results.get, name)
    except NotFound:
        raise InvalidRequest(
            f"image: there is no picture {name!r} on this server, or it has expired; send a data: URL",
            param="image",
        ) from None


async def _first_upscaler(call: Call) -> str:
    known = await asyncio.to_thread(names_in, call.service.settings.upscaler_dir, "upscaler")
    if not known:
        raise InvalidRequest("there is no upscaling model on this server; start it with --upscaler-dir")
    return known[0]


def _latest(call: Call) -> Shown:
    caller = caller_of(call.request)
    jobs = [job for job in reversed(call.service.scheduler.jobs.values()) if caller.may_see(job.caller)]
    data = [
        {"job_id": job.id, "status": job.status, "progress": round(job.progress, 2)} for job in jobs[:LATEST]
    ]
    words = "\n".join(f"{each['job_id']}: {each['status']}, {each['progress']:.0f} %" for each in data)
    return Shown(words or "you have no jobs", {"jobs": data})


def _model(entry: Entry, default: str) -> dict[str, Any]:
    return {
        "id": entry.id,
        "default": entry.id == default,
        "family": entry.family,
        "description": entry.description,
        "capabilities": list(entry.capabilities),
        "size": "x".join(map(str, entry.defaults.size)),
        "steps": entry.defaults.steps,
    }
