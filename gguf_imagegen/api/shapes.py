"""Answers as JSON: OpenAI's images object with what this server measured, and the job object."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any, Literal

from gguf_imagegen.jobs.finish import settings_of
from gguf_imagegen.jobs.job import ImageReady, Job
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.planning.plan import Plan
from gguf_imagegen.vocabulary.events import Timings

TEXTS = ("prompt", "negative_prompt", "sampler", "schedule")
NUMBERS = ("seed", "steps", "cfg_scale", "guidance")


def image_item(job: Job, image: ImageReady) -> dict[str, Any]:
    """One image without its pixels."""
    made = parameters(job.plan)
    return {
        "revised_prompt": None,
        "index": image.index,
        "seed": image.seed,
        **{name: made[name] for name in ("sampler", "schedule", "steps", "cfg_scale")},
        "width": image.width,
        "height": image.height,
        "finish_reason": "stop",
    }


def parameters(plan: Plan) -> dict[str, Any]:
    """What the picture is made with; empty values where none is generated."""
    spec = plan.generate
    if spec is None:
        return {**dict.fromkeys(TEXTS, ""), **dict.fromkeys(NUMBERS, 0)}
    return {name: getattr(spec, name) for name in (*TEXTS, *NUMBERS)}


def answer(
    job: Job,
    response_format: Literal["b64_json", "url", "file"] | None,
    read: Callable[[str], bytes],
    url: Callable[[str], str],
) -> dict[str, Any]:
    """The waiting answer; without a `response_format` both forms of the image are given."""
    data = []
    for image in job.images:
        pixels = None if response_format == "url" else base64.b64encode(read(image.name)).decode("ascii")
        address = None if response_format == "b64_json" else url(image.name)
        data.append({"b64_json": pixels, "url": address, **image_item(job, image)})
    fields = openai_fields(job)
    return {
        "created": fields.pop("created_at"),
        "model": job.plan.name,
        **fields,
        "id": job.id,
        "data": data,
        "usage": job_usage(job),
        "warnings": job.warnings,
    }


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


def job_object(job: Job, scheduler: Scheduler, url: Callable[[str], str]) -> dict[str, Any]:
    """State, progress and result of a job; images by URL."""
    plan, progress = job.plan, job.last_progress
    return {
        "id": job.id,
        "object": "job",
        "caller": job.caller,
        "operation": job.plan.operation,
        "status": job.status,
        "model": job.plan.entry.id,
        "created": int(job.created),
        "started": job.started_at,
        "ended": job.ended_at,
        "lane": job.lane,
        "priority": job.priority,
        "position": scheduler.position(job),
        "eta": scheduler.eta(job),
        "progress": round(job.progress, 2),
        "step": progress.step if progress else 0,
        "steps": progress.steps if progress else plan.sampling_steps,
        "phase": progress.phase if progress and not job.ended else None,
        "n": plan.n,
        "parameters": {**parameters(plan), "width": plan.delivered[0], "height": plan.delivered[1]},
        "settings": settings_of(plan, plan.seed(0)) if plan.generate else {"Prompt": ""},
        "data": [{"url": url(image.name), **image_item(job, image)} for image in job.images],
        "usage": job_usage(job),
        "warnings": job.warnings,
        "error": job.error.body()["error"] if job.error else None,
        "events": f"/v1/jobs/{job.id}/events",
    }
