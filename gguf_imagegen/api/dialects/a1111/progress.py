"""AUTOMATIC1111's progress and interrupt: of the caller's own jobs, as stable-diffusion-webui tells it.

Shapes are those of modules/api/models.py and modules/progress.py. On a server without keys, where everybody
is one caller, only jobs that came through this dialect count as own.
"""

from __future__ import annotations

import base64
import time
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from gguf_imagegen.api import answers
from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import CALLERS, sender_of
from gguf_imagegen.api.dialects.a1111.answers import A1111Progress, InternalProgress
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import READING, Param, endpoint
from gguf_imagegen.api.reply import reply
from gguf_imagegen.api.submit import name_of, named_job
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.planning.faults import validated
from gguf_imagegen.vocabulary.events import Loading, Progress

DIALECT = "a1111"
KINDS = {"generation": "txt2img", "edit": "img2img", "variation": "img2img", "upscale": "extras"}

SKIP_IMAGE = Param("skip_current_image", "query", {"type": "boolean"}, "leave the preview out")
ID_TASK = Param("id_task", "query", {"type": "string"}, "the job of this `force_task_id`")


class ProgressRequest(BaseModel):
    """`id_task` is the `force_task_id` of a request, or a job's id."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id_task: str = Field(max_length=200)
    id_live_preview: int = -1
    live_preview: bool = True


@endpoint(A1111Progress, params=(SKIP_IMAGE, ID_TASK))
async def progress(request: web.Request) -> web.Response:
    """GET /sdapi/v1/progress: the caller's running job, else its next one; `id_task` names another."""
    skip_image = request.query.get("skip_current_image", "").lower() in ("true", "1", "yes", "on", "t", "y")
    name = request.query.get("id_task")
    job = named_job(request, name) if name else _current(request)
    if job is not None and job.ended:
        job = None
    done, eta = 0.0, 0.0
    if job is not None:
        done = round(job.progress / 100, 4)
        eta = _eta(request.app[SERVICE].scheduler, job, done)
    body = {
        "progress": done,
        "eta_relative": eta,
        "state": _state(job),
        "current_image": _current_image(job) if job and not skip_image else None,
        "textinfo": _textinfo(job) if job else None,
        "current_task": name_of(request, job) if job else None,
    }
    return reply(A1111Progress, body)


@endpoint(
    InternalProgress,
    request=ProgressRequest,
    required=("id_task",),
    errors=READING,
    example={"id_task": "task(abc)"},
)
async def internal_progress(request: web.Request) -> web.Response:
    """POST /internal/progress: one job by its name; `id_live_preview` counts up with the previews."""
    wanted = validated(ProgressRequest, await read_body(request))
    job = named_job(request, wanted.id_task)
    status = job.status if job else "unknown"
    body: dict[str, Any] = {
        "active": status == "running",
        "queued": status == "queued",
        "completed": job is not None and job.ended,
        "progress": None,
        "eta": None,
        "live_preview": None,
        "id_live_preview": wanted.id_live_preview,
        "textinfo": _textinfo(job) if job else "Waiting...",
    }
    if job is not None and not job.ended:
        done = round(job.progress / 100, 4)
        body |= {"progress": done, "eta": _eta(request.app[SERVICE].scheduler, job, done)}
        body |= _live_preview(job, wanted.id_live_preview) if wanted.live_preview else {}
    return reply(InternalProgress, body)


@endpoint()
async def interrupt(request: web.Request) -> web.Response:
    """POST /sdapi/v1/interrupt: end the caller's running job; it is answered with the pictures so far."""
    await _end_running(request)
    return reply(answers.AnyObject, {})


@endpoint(answers.Nothing)
async def skip(request: web.Request) -> web.Response:
    """POST /sdapi/v1/skip: as interrupt, because the pictures of one job are made in one go."""
    await _end_running(request)
    return reply(answers.Nothing, None)


async def _end_running(request: web.Request) -> None:
    job = _current(request)
    if job is not None and job.status == "running":
        await request.app[SERVICE].scheduler.cancel(job, "the job was interrupted")


# -- which job ----------------------------------------------------------------------------------------


def _own(request: web.Request) -> list[Job]:
    """The caller's jobs that have not ended, the oldest first; an admin's are no more than that."""
    caller, keyed = sender_of(request).caller, request.app[CALLERS].keyed
    return [
        job
        for job in request.app[SERVICE].scheduler.jobs.values()
        if not job.ended and job.caller == caller.name and (keyed or job.sender.dialect == DIALECT)
    ]


def _current(request: web.Request) -> Job | None:
    """The newest that runs, else the one that waited longest."""
    own = _own(request)
    return next((job for job in reversed(own) if job.status == "running"), own[0] if own else None)


# -- in its words -------------------------------------------------------------------------------------


def _state(job: Job | None) -> dict[str, Any]:
    count, step, steps = 0, 0, 0
    if job is not None:
        count, steps = job.plan.n, job.plan.sampling_steps
        last = job.last_progress
        if last is not None and last.phase in ("sampling", "hires") and last.index >= len(job.images):
            step, steps = last.step, last.steps or steps
        elif last is not None and last.phase == "decoding":
            step = steps
    return {
        "skipped": False,
        "interrupted": bool(job and job.cancel_requested),
        "stopping_generation": bool(job and job.cancel_requested),
        "job": KINDS[job.plan.operation] if job else "",
        "job_count": count,
        "job_timestamp": timestamp(job) if job else "0",
        "job_no": min(len(job.images), count - 1) if job else 0,
        "sampling_step": step,
        "sampling_steps": steps,
    }


def _eta(scheduler: Scheduler, job: Job, done: float) -> float:
    """Seconds until the end: from measured speed, else by the rule of three, else 0."""
    measured = scheduler.eta(job)
    if measured is None and done and job.started_at is not None:
        measured = (time.time() - job.started_at) * (1 - done) / done
    return round(measured or 0.0, 2)


def _current_image(job: Job) -> str | None:
    """The newest preview, in base64."""
    preview = job.last_preview
    return base64.b64encode(preview.data).decode("ascii") if preview else None


def _live_preview(job: Job, had: int) -> dict[str, Any]:
    """The newest preview as a data URL, unless the client has it: its number is that of its step."""
    preview = job.last_preview
    number = preview.index * 10_000 + preview.step if preview else had
    if preview is None or number == had:
        return {}
    data = base64.b64encode(preview.data).decode("ascii")
    return {"live_preview": f"data:image/{job.plan.output_format};base64,{data}", "id_live_preview": number}


def _textinfo(job: Job) -> str | None:
    """What it does while there are no steps to count."""
    if job.status == "queued":
        return "waiting in the queue"
    match job.last_work:
        case Loading(what=what):
            return f"loading {what}"
        case Progress(phase=phase) if phase != "sampling":
            return phase
    return None


def timestamp(job: Job) -> str:
    """When it came, as AUTOMATIC1111 writes it."""
    return time.strftime("%Y%m%d%H%M%S", time.localtime(job.created))
