"""Jobs of every dialect: list, state, events with replay, priority, cancel."""

from __future__ import annotations

from functools import partial

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import caller_of
from gguf_imagegen.api.job_answers import JobList, JobObject
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import EVENTS, Param, endpoint
from gguf_imagegen.api.paging import LIMIT, limit_of, page_of
from gguf_imagegen.api.reply import reply
from gguf_imagegen.api.streams.encoders import BothEncoder
from gguf_imagegen.api.streams.send import stream_job
from gguf_imagegen.api.urls import file_url
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.planning.request import MAX_PRIORITY, StreamOptions
from gguf_imagegen.vocabulary.errors import Forbidden, InvalidRequest, JobNotFound

PAGE = 50
LONGEST_ID = 15
"""Digits of an event's id; each run of the server begins a million later."""
BEFORE = Param("before", "query", {"type": "string"}, "go on after the job of this id")
LAST_EVENT = Param(
    "Last-Event-ID", "header", {"type": "integer", "minimum": -1, "maximum": 10**LONGEST_ID - 1},
    "go on after this event",
)  # fmt: skip
LAST_EVENT_QUERY = Param("last_event_id", "query", LAST_EVENT.schema, "the same, for browsers")


@endpoint(JobList, errors=(InvalidRequest, JobNotFound), params=(LIMIT, BEFORE))
async def list_jobs(request: web.Request) -> web.Response:
    """GET /v1/jobs: the newest first; `limit` of 50, at most 200, from after the job named `before`."""
    limit, before = limit_of(request, PAGE), request.query.get("before")
    scheduler, caller = request.app[SERVICE].scheduler, caller_of(request)
    jobs = (job for job in reversed(scheduler.jobs.values()) if caller.may_see(job.caller))
    page, more = page_of(jobs, limit, None if before is None else scheduler.get(before, caller))
    return reply(JobList, {"object": "list", "data": [_view(request, job) for job in page], "has_more": more})


@endpoint(JobObject, errors=(JobNotFound,))
async def get_job(request: web.Request) -> web.Response:
    """GET /v1/jobs/{id}: state and result."""
    return reply(JobObject, _view(request, _job(request)))


@endpoint(
    None,
    errors=(JobNotFound, InvalidRequest),
    media=(EVENTS,),
    events="One frame for each event of the job, its number as `id:`, and `data: [DONE]` at the end.",
    params=(LAST_EVENT, LAST_EVENT_QUERY),
)
async def job_events(request: web.Request) -> web.StreamResponse:
    """GET /v1/jobs/{id}/events: the whole history and what follows, from after `Last-Event-ID`."""
    job = _job(request)
    scheduler = request.app[SERVICE].scheduler
    last = request.headers.get("Last-Event-ID") or request.query.get("last_event_id") or "-1"
    if not last.removeprefix("-").isdecimal() or len(last) > LONGEST_ID:
        raise InvalidRequest("Last-Event-ID: must be the id of an event of this job")
    encoder = BothEncoder(job, StreamOptions(), scheduler.results.get, scheduler.eta, ids=True)
    return await stream_job(request, job, encoder, start=job.after(int(last)), cancel_on_leave=False)


class JobChange(BaseModel):
    """What can be changed of a job that waits."""

    model_config = ConfigDict(extra="forbid")

    priority: int | None = Field(None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    before: str | None = Field(None, max_length=200)
    """The id of another waiting job, of the same caller and priority, before which it is to go."""


@endpoint(
    JobObject,
    request=JobChange,
    errors=(JobNotFound, InvalidRequest, Forbidden),
)
async def change_job(request: web.Request) -> web.Response:
    """POST /v1/jobs/{id}: priority or place of a job that waits; one that has begun stays as it is."""
    job, service, caller = _job(request), request.app[SERVICE], caller_of(request)
    try:
        change = JobChange.model_validate(await read_body(request))
    except ValidationError as exc:
        fault = exc.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, fault["loc"]))
        raise InvalidRequest(f"{field}: {fault['msg']}", param=field) from None
    if change.priority is None and change.before is None:
        raise InvalidRequest("Say what to change: 'priority' or 'before'")
    if change.priority is not None:
        service.move(job, change.priority, caller)
    if change.before is not None:
        service.let_before(job, service.scheduler.get(change.before, caller))
    return reply(JobObject, _view(request, job))


@endpoint(JobObject, errors=(JobNotFound,))
async def cancel_job(request: web.Request) -> web.Response:
    """DELETE /v1/jobs/{id}: cancel, queued or running; a finished job stays as it is."""
    job = _job(request)
    await request.app[SERVICE].scheduler.cancel(job)
    return reply(JobObject, _view(request, job))


def _job(request: web.Request) -> Job:
    return request.app[SERVICE].scheduler.get(request.match_info["id"], caller_of(request))


def _view(request: web.Request, job: Job) -> JobObject:
    return JobObject.of(job, request.app[SERVICE].scheduler, partial(file_url, request))
