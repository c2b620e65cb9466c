"""Sets of pictures as JSON: the set, its items, and what they would cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field

from gguf_imagegen.api.error_answers import ErrorObject
from gguf_imagegen.api.job_answers import DryRun, JobStatus
from gguf_imagegen.api.reply import Answer
from gguf_imagegen.jobs.forecast import Forecast
from gguf_imagegen.jobs.picture_set import PictureSet


class SetItem(Answer):
    """One picture of a set; `url` and `name` are null until it is made, `job` until it is in the queue."""

    index: int
    job: str | None
    status: JobStatus
    progress: float = Field(ge=0, le=100)
    prompt: str
    model: str
    cfg_scale: float
    sampler: str
    steps: int
    seed: int
    variation_strength: float
    url: str | None
    name: str | None
    error: ErrorObject | None

    @classmethod
    def of(cls, wanted: PictureSet, index: int, url: Callable[[str], str]) -> SetItem:
        item, job, error = wanted.items[index], wanted.jobs.get(index), wanted.error_of(index)
        image = job.images[0] if job and job.images else None
        return cls(
            index=index,
            job=job.id if job else None,
            status=wanted.status_of(index),
            progress=round(job.progress, 2) if job else 0.0,
            prompt=item.prompt,
            model=item.model,
            cfg_scale=item.cfg_scale,
            sampler=item.sampler,
            steps=item.steps,
            seed=item.seed,
            variation_strength=item.variation_strength,
            url=url(image.name) if image else None,
            name=image.name if image else None,
            error=error.body()["error"] if error else None,
        )


class SetSummary(Answer):
    """A set without its items; `progress` is 0 to 100."""

    id: str
    object: Literal["set"]
    caller: str
    status: JobStatus
    created: int
    ended: float | None
    n: int
    done: int
    progress: float = Field(ge=0, le=100)
    eta: float | None
    varies: list[str]
    sheet: str
    events: str
    warnings: list[str]

    @classmethod
    def of(cls, wanted: PictureSet, lanes: int) -> SetSummary:
        return cls(
            id=wanted.id,
            object="set",
            caller=wanted.sender.caller.name,
            status=wanted.status,
            created=int(wanted.created),
            ended=wanted.ended,
            n=len(wanted.items),
            done=wanted.done,
            progress=round(wanted.progress, 2),
            eta=wanted.seconds_left(lanes),
            varies=wanted.varies,
            sheet=f"/v1/images/sets/{wanted.id}/sheet",
            events=f"/v1/images/sets/{wanted.id}/events",
            warnings=list(wanted.warnings),
        )


class SetObject(SetSummary):
    """A set and its items."""

    items: list[SetItem]

    @classmethod
    def whole(cls, wanted: PictureSet, lanes: int, url: Callable[[str], str]) -> SetObject:
        items = [SetItem.of(wanted, index, url) for index in range(len(wanted.items))]
        return cls(**SetSummary.of(wanted, lanes).model_dump(), items=items)


class SetList(Answer):
    object: Literal["list"]
    data: list[SetSummary]
    has_more: bool


class SetDryRun(Answer):
    """What a set would come to and cost; nothing was made."""

    object: Literal["dry_run"]
    n: int
    seconds: float | None
    load_seconds: float | None
    fits: bool
    warnings: list[str]
    items: list[DryRun]

    @classmethod
    def of(cls, found: Sequence[Forecast], warnings: Sequence[str]) -> SetDryRun:
        """Each model is loaded once."""
        loads = {each.plan.entry.name: each.load_seconds for each in found}
        return cls(
            object="dry_run",
            n=len(found),
            seconds=_total([each.seconds for each in found]),
            load_seconds=_total(list(loads.values())),
            fits=all(each.fits for each in found),
            warnings=list(warnings),
            items=[DryRun.of(each) for each in found],
        )


def _total(seconds: Sequence[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None
