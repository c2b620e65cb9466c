"""sd.cpp's native API: capabilities, and image jobs that are submitted, polled and cancelled.

Answers are those of sd.cpp's own server (examples/server, routes_sdcpp.cpp and async_jobs.cpp) with keys of
ours added. Two things differ: a running job can be cancelled, and paths are bare names.
"""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import caller_of
from gguf_imagegen.api.dialect import Dialect, ErrorForm
from gguf_imagegen.api.dialects.sdcpp.answers import (
    NativeCapabilities,
    NativeJob,
    NativeSubmitted,
)
from gguf_imagegen.api.dialects.sdcpp.capabilities import capabilities_of
from gguf_imagegen.api.dialects.sdcpp.extra_args import with_extra_args
from gguf_imagegen.api.dialects.sdcpp.request import native_name, to_fields
from gguf_imagegen.api.dialects.sdcpp.schema import native_properties
from gguf_imagegen.api.error_answers import NativeErrorAnswer
from gguf_imagegen.api.job_answers import DryRun
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import IDEMPOTENCY, PICTURE, endpoint
from gguf_imagegen.api.openapi.schemas import Schema
from gguf_imagegen.api.packing import compressed
from gguf_imagegen.api.reply import reply
from gguf_imagegen.api.submit import begin, pictures
from gguf_imagegen.api.urls import prefix
from gguf_imagegen.jobs.job import Job, Status
from gguf_imagegen.jobs.picture_set import PictureSet
from gguf_imagegen.jobs.ticket import Ticket
from gguf_imagegen.vocabulary.errors import (
    ContentTypeUnsupported,
    ImagegenError,
    JobNotFound,
    ModelNotFound,
    NotFound,
    UnsupportedOperation,
)

SUBMITTED = web.AppKey("sdcpp_submitted", deque[tuple[str, str]])
"""Callers and ids of the newest jobs of this API, by which an expired job is told from one that never was."""
MAX_SUBMITTED = 10_000

STATUS: dict[Status, str] = {
    "queued": "queued",
    "running": "generating",
    "succeeded": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}
WORDS = {
    "queue_full": "job queue is full",
    "job_not_found": "job not found",
    "job_expired": "job expired",
}
"""What sd.cpp says in `error` where it has words for a case, by our code."""


class JobExpired(JobNotFound):
    """There was such a job, and it or its pictures are past their time."""

    status = 410
    code = "job_expired"


class NativeRequest(BaseModel):
    """sd.cpp's native schema; 0, -1 and "" leave a field to the model."""


def error_body(error: ImagegenError) -> dict[str, Any]:
    """sd.cpp's `error`, which is text, and beside it the members of our own error object."""
    text, param = str(error), native_name(error.param)
    if error.param and param:
        rest = text.removeprefix(error.param)
        text = param + rest if rest.startswith((":", ".")) else text if param in text else f"{param}: {text}"
    ours = {"type": error.type, "param": param, "code": error.code, "detail": text}
    return {"error": WORDS.get(error.code, text), "message": text, **ours}


@endpoint(NativeCapabilities, errors=(ModelNotFound,))
@compressed
async def capabilities(request: web.Request) -> web.Response:
    """GET /sdcpp/v1/capabilities, of the default model."""
    entry = request.app[SERVICE].model(None)
    service = request.app[SERVICE]
    found = await asyncio.to_thread(capabilities_of, entry, service.settings, service.abilities)
    return reply(NativeCapabilities, found)


@endpoint(
    NativeSubmitted,
    request=NativeRequest,
    required=("prompt",),
    errors=PICTURE,
    dry_run=DryRun,
    status=202,
    params=(IDEMPOTENCY,),
    example={"prompt": "a lovely cat", "width": 64, "height": 64, "sample_params": {"sample_steps": 2}},
)
async def img_gen(request: web.Request) -> web.Response:
    """POST /sdcpp/v1/img_gen: 202, and the job goes on whether anybody waits or not."""
    fields = await asyncio.to_thread(to_fields, await read_body(request))
    work = await begin(request, fields, "edit" if fields.get("image") else "generation", lasting=True)
    job = work.job
    request.app[SUBMITTED].append((job.caller, job.id))
    body = {
        "id": job.id,
        "kind": "img_gen",
        "status": STATUS[job.status],
        "created": int(job.created),
        "poll_url": f"{prefix(request)}/sdcpp/v1/jobs/{job.id}",
        "warnings": job.warnings,
    }
    return reply(NativeSubmitted, body, status=202)


@endpoint(request=NativeRequest, errors=(UnsupportedOperation,), status=0)
async def vid_gen(request: web.Request) -> web.Response:
    """POST /sdcpp/v1/vid_gen: refused, as sd.cpp does with a model that makes images."""
    raise UnsupportedOperation("loaded model does not support vid_gen; this server makes images: use img_gen")


@endpoint(NativeJob, errors=(JobExpired, JobNotFound))
async def get_job(request: web.Request) -> web.Response:
    """GET /sdcpp/v1/jobs/{id}: a job of this API or any other."""
    return reply(NativeJob, await _job_object(request.app, _job(request)))


@endpoint(NativeJob, errors=(JobExpired, JobNotFound))
async def cancel_job(request: web.Request) -> web.Response:
    """POST /sdcpp/v1/jobs/{id}/cancel: queued or running; a finished job stays as it is."""
    job = _job(request)
    await request.app[SERVICE].scheduler.cancel(job, "job cancelled by client")
    return reply(NativeJob, await _job_object(request.app, job))


def _job(request: web.Request) -> Job:
    job_id, caller = request.match_info["id"], caller_of(request)
    try:
        return request.app[SERVICE].scheduler.get(job_id, caller)
    except JobNotFound:
        owners = [owner for owner, known in request.app[SUBMITTED] if known == job_id]
        before = request.app[SERVICE].forgotten.get(job_id)
        if any(map(caller.may_see, owners if before is None else [*owners, before])):
            raise _expired(job_id) from None
        raise


def _expired(job_id: str) -> JobExpired:
    return JobExpired(f"job {job_id!r} is over, and its pictures were kept for their time (--job-ttl)")


async def _job_object(app: web.Application, job: Job) -> dict[str, Any]:
    """sd.cpp's job with its result, and with our progress (0 to 1), steps, and seconds to go."""
    progress, scheduler = job.last_progress, app[SERVICE].scheduler
    return {
        "id": job.id,
        "kind": "img_gen",
        "status": STATUS[job.status],
        "created": int(job.created),
        "started": int(job.started_at) if job.started_at else None,
        "completed": int(job.ended_at) if job.ended_at else None,
        "queue_position": scheduler.position(job) or 0,
        "result": await _result(app, job) if job.status == "succeeded" else None,
        "error": {"code": job.error.code, "message": str(job.error)} if job.error else None,
        "progress": round(job.progress / 100, 4),
        "step": progress.step if progress else 0,
        "steps": progress.steps if progress else job.plan.sampling_steps,
        "eta": scheduler.eta(job),
        "model": job.plan.name,
        "warnings": job.warnings,
    }


async def _result(app: web.Application, job: Job) -> dict[str, Any]:
    try:
        encoded = await asyncio.to_thread(lambda: [base64.b64encode(data) for data in pictures(app, job)])
    except NotFound:
        raise _expired(job.id) from None
    images = [
        {"index": image.index, "b64_json": data.decode("ascii"), "seed": image.seed}
        for image, data in zip(job.images, encoded, strict=True)
    ]
    return {"output_format": job.plan.output_format, "images": images}


def _status(kind: type[ImagegenError]) -> int:
    """sd.cpp looks at no content type, so there is no status for a wrong one."""
    return 400 if kind is ContentTypeUnsupported else kind.status


def _describe(schemas: dict[str, Schema]) -> None:
    schemas["NativeRequest"]["properties"] = native_properties(schemas["ImageRequest"]["properties"])


def _prepare(app: web.Application) -> None:
    """Jobs of earlier runs of the server, too, expire with a 410."""
    submitted = app[SUBMITTED] = deque(maxlen=MAX_SUBMITTED)
    service = app[SERVICE]
    others = service.returned

    def returned(job: Job | PictureSet, ticket: Ticket) -> None:
        if isinstance(job, Job):
            submitted.append((job.caller, job.id))
        others(job, ticket)

    service.returned = returned


DIALECT = Dialect(
    "sdcpp",
    "sd.cpp's server",
    [
        web.get("/sdcpp/v1/capabilities", capabilities),
        web.post("/sdcpp/v1/img_gen", img_gen),
        web.post("/sdcpp/v1/vid_gen", vid_gen),
        web.get("/sdcpp/v1/jobs/{id}", get_job),
        web.post("/sdcpp/v1/jobs/{id}/cancel", cancel_job),
    ],
    roots=("/sdcpp/",),
    errors=ErrorForm(NativeErrorAnswer, error_body, _status),
    unwrap=with_extra_args,
    describe=_describe,
    prepare=_prepare,
)
