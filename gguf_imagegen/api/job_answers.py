"""Jobs and pictures as JSON: the job object, and OpenAI's images object with what this server measured."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field

from gguf_imagegen.api.error_answers import ErrorObject
from gguf_imagegen.api.reply import Answer
from gguf_imagegen.jobs.finish import settings_of
from gguf_imagegen.jobs.forecast import Forecast
from gguf_imagegen.jobs.job import ImageReady, Job
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.machine.memory import usable
from gguf_imagegen.planning.plan import Plan
from gguf_imagegen.vocabulary.events import Timings

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ResponseFormat = Literal["b64_json", "url", "file"]
Read = Callable[[str], bytes]
"""Gives the encoded image stored under a name."""
TEXTS = ("prompt", "negative_prompt", "sampler", "schedule")
NUMBERS = ("seed", "steps", "cfg_scale", "guidance")


class ImageItem(Answer):
    """One picture and how it was made; `b64_json` and `url` as `response_format` wants them, else null."""

    b64_json: str | None = Field(None, json_schema_extra={"contentEncoding": "base64"})
    url: str | None = None
    revised_prompt: str | None
    index: int
    seed: int
    variation_seed: int | None
    sampler: str
    schedule: str
    steps: int
    cfg_scale: float
    width: int
    height: int
    finish_reason: str

    @classmethod
    def of(cls, job: Job, image: ImageReady, **form: str | None) -> ImageItem:
        """`form` may have the picture as `b64_json` and `url`."""
        made, variation = parameters(job.plan), job.plan.variation(image.index)
        return cls(
            **form,
            revised_prompt=revised_prompt(job.plan),
            index=image.index,
            seed=image.seed,
            variation_seed=variation.seed if variation else None,
            sampler=made["sampler"],
            schedule=made["schedule"],
            steps=made["steps"],
            cfg_scale=made["cfg_scale"],
            width=image.width,
            height=image.height,
            finish_reason="stop",
        )


class Usage(Answer):
    """Token counts are 0; the times are measured."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: dict[str, int]
    time_to_process_ms: float
    time_per_generation_ms: float
    generation_per_second: float


class ImagesAnswer(Answer):
    created: int
    model: str
    size: str
    quality: str
    background: str
    output_format: Literal["png", "jpeg", "webp"]
    id: str
    data: list[ImageItem]
    usage: Usage
    warnings: list[str]

    @classmethod
    def of(
        cls, job: Job, response_format: ResponseFormat | None, read: Read, url: Callable[[str], str]
    ) -> ImagesAnswer:
        """The waiting answer; without a `response_format` both forms of the image are given. Reads files."""
        data = []
        for image in job.images:
            pixels = None if response_format == "url" else base64.b64encode(read(image.name)).decode("ascii")
            address = None if response_format == "b64_json" else url(image.name)
            data.append(ImageItem.of(job, image, b64_json=pixels, url=address))
        fields = openai_fields(job)
        return cls(
            created=fields.pop("created_at"),
            model=job.plan.name,
            **fields,
            id=job.id,
            data=data,
            usage=Usage(**job_usage(job)),
            warnings=job.warnings,
        )


class JobParameters(Answer):
    prompt: str
    negative_prompt: str
    seed: int
    variation_seed: int | None
    variation_strength: float
    steps: int
    sampler: str
    schedule: str
    cfg_scale: float
    guidance: float | None
    width: int
    height: int

    @classmethod
    def of(cls, plan: Plan) -> JobParameters:
        width, height = plan.delivered
        variation = plan.variation(0)
        return cls(
            **parameters(plan),
            variation_seed=variation.seed if variation else None,
            variation_strength=variation.strength if variation else 0.0,
            width=width,
            height=height,
        )


class MemoryNeed(Answer):
    """Bytes."""

    needs: int
    usable: int
    fits: bool


class DryRun(Answer):
    """What a request would come to and cost; nothing was made."""

    object: Literal["dry_run"]
    model: str
    n: int
    parameters: JobParameters
    seconds: float | None
    load_seconds: float | None
    tiles: int
    memory: MemoryNeed | None
    cheaper: dict[str, str] | None
    warnings: list[str]

    @classmethod
    def of(cls, found: Forecast) -> DryRun:
        plan, room = found.plan, found.room
        return cls(
            object="dry_run",
            model=plan.entry.name,
            n=plan.n,
            parameters=JobParameters.of(plan),
            seconds=found.seconds,
            load_seconds=found.load_seconds,
            tiles=found.tiles,
            memory=room and MemoryNeed(needs=room.needs, usable=usable(room.free), fits=room.fits),
            cheaper=found.cheaper,
            warnings=list(plan.warnings),
        )


class JobObject(Answer):
    """State, progress (0 to 100) and result of a job."""

    id: str
    object: Literal["job"]
    set: str | None
    caller: str
    operation: Literal["generation", "edit", "variation", "upscale"]
    status: JobStatus
    model: str
    created: int
    started: float | None
    ended: float | None
    lane: str | None
    priority: int
    position: int | None
    eta: float | None
    progress: float = Field(ge=0, le=100)
    step: int
    steps: int
    phase: str | None
    n: int
    parameters: JobParameters
    settings: dict[str, str]
    data: list[ImageItem]
    usage: Usage
    warnings: list[str]
    error: ErrorObject | None
    events: str

    @classmethod
    def of(cls, job: Job, scheduler: Scheduler, url: Callable[[str], str]) -> JobObject:
        """Its pictures by URL."""
        plan, progress = job.plan, job.last_progress
        return cls(
            id=job.id,
            object="job",
            set=job.parent,
            caller=job.caller,
            operation=plan.operation,
            status=job.status,
            model=plan.entry.id,
            created=int(job.created),
            started=job.started_at,
            ended=job.ended_at,
            lane=job.lane,
            priority=job.priority,
            position=scheduler.position(job),
            eta=scheduler.eta(job),
            progress=round(job.progress, 2),
            step=progress.step if progress else 0,
            steps=progress.steps if progress else plan.sampling_steps,
            phase=progress.phase if progress and not job.ended else None,
            n=plan.n,
            parameters=JobParameters.of(plan),
            settings=settings_of(plan, 0) if plan.generate else {"Prompt": ""},
            data=[ImageItem.of(job, image, url=url(image.name)) for image in job.images],
            usage=Usage(**job_usage(job)),
            warnings=job.warnings,
            error=job.error.body()["error"] if job.error else None,
            events=f"/v1/jobs/{job.id}/events",
        )


class JobList(Answer):
    object: Literal["list"]
    data: list[JobObject]
    has_more: bool


def revised_prompt(plan: Plan) -> str | None:
    """The prompt, where it is not the client's."""
    return plan.spec.prompt if plan.enhanced else None


def parameters(plan: Plan) -> dict[str, Any]:
    """What the picture is made with; empty values where none is generated."""
    spec = plan.generate
    if spec is None:
        return {**dict.fromkeys(TEXTS, ""), **dict.fromkeys(NUMBERS, 0)}
    return {name: getattr(spec, name) for name in (*TEXTS, *NUMBERS)}


def openai_fields(job: Job) -> dict[str, Any]:
    plan = job.plan
    return {
        "created_at": int(job.created),
        "size": "x".join(map(str, plan.delivered)),
        "quality": plan.quality,
        "background": "opaque",
        "output_format": plan.output_format,
    }


def job_usage(job: Job | None) -> dict[str, Any]:
    """OpenAI's token counts, all zero because nothing is billed, and llama-box's measured times."""
    tokens = {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
    }
    return {**tokens, **(usage_of([image.timings for image in job.images]) if job else {})}


def usage_of(timings: Sequence[Timings]) -> dict[str, float]:
    """llama-box's figures: conditioning ms, ms per denoising step, steps per second."""
    steps = sum(t.steps for t in timings)
    sampling = sum(t.sampling_ms for t in timings)
    return {
        "time_to_process_ms": round(sum(t.conditioning_ms for t in timings), 3),
        "time_per_generation_ms": round(sampling / steps, 3) if steps else 0.0,
        "generation_per_second": round(1000 * steps / sampling, 3) if sampling else 0.0,
    }
