"""From a dialect's fields to a job, and from a job to its pictures: the one way for all dialects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

from aiohttp import web
from pydantic import BaseModel

from gguf_imagegen.api import body
from gguf_imagegen.api.callers import caller_of, sender_of
from gguf_imagegen.api.dialect import DIALECTS
from gguf_imagegen.api.idempotency import ATTEMPTS
from gguf_imagegen.api.job_answers import DryRun, JobObject, Read
from gguf_imagegen.api.keys import JOB_MADE, REQUEST_IDS, SERVICE
from gguf_imagegen.api.reply import Answered, reply
from gguf_imagegen.api.streams.encoders import Encoder, Eta
from gguf_imagegen.api.streams.send import answer_job, stream_job, wait_for_job
from gguf_imagegen.api.urls import base_url, file_url
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.jobs.picture_set import PictureSet
from gguf_imagegen.jobs.ticket import Repeat, Ticket
from gguf_imagegen.planning.plan import Operation
from gguf_imagegen.planning.prompt import require_prompt
from gguf_imagegen.planning.request import ImageRequest, StreamOptions, parse_request
from gguf_imagegen.vocabulary.errors import JobNotFound


@dataclass(frozen=True)
class Work:
    """A job, and the request that asked for it, without the files in it."""

    job: Job
    wanted: ImageRequest

    @property
    def cancel_on_leave(self) -> bool:
        return self.wanted.on_disconnect == "cancel"


async def begin(
    request: web.Request,
    fields: Mapping[str, Any],
    operation: Operation,
    *,
    prompt_needed: bool = True,
    notes: Sequence[str] = (),
    lasting: bool = False,
) -> Work:
    """Queue a job made from fields by their canonical names or any alias; refuses before it queues.

    `notes` are further warnings. Variations and upscales never need a prompt. A `lasting` job needs nobody
    who waits, whatever the request says.
    """
    needed = prompt_needed and operation in ("generation", "edit")
    work = await _begin(request, fields, operation, needed, notes, lasting)
    request[JOB_MADE] = True
    body.let_go(request)
    return replace(work, wanted=work.wanted.without_files())


async def _begin(
    request: web.Request,
    fields: Mapping[str, Any],
    operation: Operation,
    prompt_needed: bool,
    notes: Sequence[str],
    lasting: bool,
) -> Work:
    wanted, warnings = await asyncio.to_thread(_parsed, request, fields)
    if prompt_needed:
        require_prompt(wanted.prompt)
    warnings = [*request.get(body.NOTES, []), *notes, *warnings]
    if wanted.dry_run:
        await _answer_dry_run(request, wanted, operation, warnings)
    attempt = await request.app[ATTEMPTS].of(request, fields)
    lasting = lasting or wanted.on_disconnect == "continue" or prefers_async(request)
    submit = partial(_submit, request, wanted, operation, warnings, lasting)
    if attempt is None:
        return Work(await submit(None), wanted)
    async with attempt.lock:
        job = attempt.joinable or await submit(attempt.repeat)
        job.missed = False
        attempt.job = job
    return Work(job, wanted)


async def _answer_dry_run(
    request: web.Request, wanted: ImageRequest, operation: Operation, warnings: list[str]
) -> NoReturn:
    """What the job would cost, in one shape for all dialects, so that none needs a case for it."""
    service = request.app[SERVICE]
    plan = await service.plan(wanted, operation, warnings, sender_of(request))
    (found,) = await service.forecasts([plan])
    raise Answered(reply(DryRun, DryRun.of(found)))


def _parsed(request: web.Request, fields: Mapping[str, Any]) -> tuple[ImageRequest, list[str]]:
    app = request.app
    return parse_request(app[DIALECTS].unwrapped(request, fields), app[SERVICE].abilities)


async def _submit(
    request: web.Request,
    wanted: ImageRequest,
    operation: Operation,
    warnings: list[str],
    lasting: bool,
    repeat: Repeat | None,
) -> Job:
    job = await request.app[SERVICE].submit(
        wanted,
        operation,
        warnings,
        sender_of(request),
        lasting=lasting,
        repeat=repeat,
        base=base_url(request),
    )
    if wanted.request_id:
        _remember(request.app, wanted.request_id, job)
    return job


def take_back(app: web.Application, job: Job | PictureSet, ticket: Ticket) -> None:
    """What an earlier run of the server took: it is found again by whatever names its client has for it."""
    if ticket.repeat is not None:
        app[ATTEMPTS].take_back(ticket.repeat, job)
    if isinstance(job, Job) and (request_id := ticket.request.get("request_id")):
        app[REQUEST_IDS][job.caller, request_id] = job.id


def _remember(app: web.Application, request_id: str, job: Job) -> None:
    """The client's own name of its job, for as long as the scheduler knows the job."""
    names, jobs = app[REQUEST_IDS], app[SERVICE].scheduler.jobs
    for old in [name for name, job_id in names.items() if job_id not in jobs]:
        del names[old]
    names[job.caller, request_id] = job.id


def named_job(request: web.Request, name: str) -> Job | None:
    """A job by the name that its caller gave it, or by its own id."""
    caller = caller_of(request)
    job_id = request.app[REQUEST_IDS].get((caller.name, name), name)
    try:
        return request.app[SERVICE].scheduler.get(job_id, caller)
    except JobNotFound:
        return None


def name_of(request: web.Request, job: Job) -> str:
    """The name that its caller gave it, else its own id."""
    names = request.app[REQUEST_IDS]
    return next((name for (_, name), job_id in names.items() if job_id == job.id), job.id)


async def answered(
    request: web.Request,
    work: Work,
    encoder: Callable[[Job, StreamOptions, Read, Eta], Encoder],
    model: type[BaseModel],
    body: Callable[[Job, Read], object],
) -> web.StreamResponse:
    """As the request wants it: 202 at once, streamed by the encoder, or the model's answer at the end."""
    job, scheduler = work.job, request.app[SERVICE].scheduler
    if prefers_async(request):
        return accepted(request, job)
    read = scheduler.results.get
    if work.wanted.stream:
        made = encoder(job, work.wanted.stream_options or StreamOptions(), read, scheduler.eta)
        return await stream_job(request, job, made, cancel_on_leave=work.cancel_on_leave)
    return await answer_job(
        request, job, model, partial(body, job, read), cancel_on_leave=work.cancel_on_leave
    )


async def finish(request: web.Request, work: Work) -> list[bytes]:
    """Wait for the end; the encoded pictures in order. Raises the job's error."""
    await wait_for_job(request, work.job, cancel_on_leave=work.cancel_on_leave)
    return await asyncio.to_thread(pictures, request.app, work.job)


def pictures(app: web.Application, job: Job) -> list[bytes]:
    """The encoded pictures made so far. Reads files: call it in a thread."""
    return [app[SERVICE].scheduler.results.get(image.name) for image in job.images]


def prefers_async(request: web.Request) -> bool:
    """RFC 7240's `Prefer: respond-async`."""
    wishes = ",".join(request.headers.getall("Prefer", ())).split(",")
    return any(wish.split(";")[0].strip().lower() == "respond-async" for wish in wishes)


def accepted(request: web.Request, job: Job) -> web.Response:
    """202 with the job object, and where to look for its end."""
    return reply(
        JobObject,
        JobObject.of(job, request.app[SERVICE].scheduler, partial(file_url, request)),
        status=202,
        headers={
            "Location": f"{base_url(request)}/v1/jobs/{job.id}",
            "Preference-Applied": "respond-async",
            "X-Job-Id": job.id,
        },
    )
