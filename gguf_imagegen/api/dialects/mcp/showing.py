"""What a tool answers: words, the same as data, and pictures small enough for chat programs."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from gguf_imagegen.jobs.job import Job
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.pictures import decode, encode, provenance

LARGEST = 700_000
"""Bytes of all pictures in one answer: Claude Desktop takes a mebibyte of base64 and words."""
SIDES = (1024, 768, 512, 256)
"""Longest sides that are tried in turn for a picture that is larger."""


@dataclass(frozen=True)
class Shown:
    """One answer; a picture is a file and its media type."""

    words: str
    data: dict[str, Any]
    pictures: list[tuple[bytes, str]] = field(default_factory=list)


def job_shown(job: Job, scheduler: Scheduler, url: Callable[[str], str]) -> Shown:
    """Where the job stands, with its pictures or else its newest preview. Reads files, in a thread."""
    made = [{"url": url(each.name), "seed": each.seed, "width": each.width, "height": each.height}
            for each in job.images]  # fmt: skip
    data: dict[str, Any] = {
        "job_id": job.id,
        "status": job.status,
        "progress": round(job.progress, 2),
        "model": job.plan.entry.id,
        "images": made,
        "warnings": job.warnings,
    }
    return Shown("\n".join(_words(job, scheduler, made)), data, _pictures(job, scheduler))


def _words(job: Job, scheduler: Scheduler, made: list[dict[str, Any]]) -> list[str]:
    lines = [f"{each['url']} ({each['width']}x{each['height']}, seed {each['seed']})" for each in made]
    if job.ended:
        head = f"{job.id} {job.status}: {len(made)} of {job.plan.n} pictures by {job.plan.entry.id}"
    else:
        eta = scheduler.eta(job)
        left = "" if eta is None else f", about {eta:.0f} s left"
        head = (
            f"{job.id} is {job.status}, {job.progress:.0f} % done{left}."
            f" It goes on: call job_status with job_id={job.id} and wait_seconds to get its pictures."
        )
    return [head, *lines, *(f"warning: {each}" for each in job.warnings)]


def _pictures(job: Job, scheduler: Scheduler) -> list[tuple[bytes, str]]:
    if job.images:
        share = LARGEST // len(job.images)
        return [fitting(scheduler.results.get(each.name), share) for each in job.images]
    preview = job.last_preview
    return [fitting(preview.data, LARGEST)] if preview is not None and preview.data else []


def fitting(file: bytes, most: int) -> tuple[bytes, str]:
    """The picture in at most about `most` bytes and its media type: as it is, or smaller and as JPEG."""
    picture = Image.open(io.BytesIO(file))
    if len(file) <= most:
        return file, f"image/{(picture.format or 'png').lower()}"
    smaller = file
    for side in SIDES:
        copy = decode.flatten(picture.convert("RGB"))
        copy.thumbnail((side, side))
        smaller = encode.encode_picture(
            copy, format="jpeg", compression=85, xmp=provenance.carried(picture.info)
        )
        if len(smaller) <= most:
            break
    return smaller, "image/jpeg"
