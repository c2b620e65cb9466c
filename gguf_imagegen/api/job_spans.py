"""A job's history as spans of time: its wait, its load, and the phases of each picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from gguf_imagegen.jobs.job import ImageReady, Job, JobEvent, Queued, Started
from gguf_imagegen.vocabulary.events import Loaded, Loading, Notice, PhaseChanged, Progress

Value = str | int | float


@dataclass(frozen=True)
class Moment:
    """Something that took no time; `at` is in seconds since the epoch."""

    name: str
    at: float
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class JobSpan:
    """From `start` to `end`, in seconds since the epoch."""

    name: str
    start: float
    end: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    moments: tuple[Moment, ...] = ()


def spans_of(job: Job) -> Iterator[JobSpan]:
    """In the order of their starts; each ends where the next one starts. Steps are moments of their phase."""
    current: JobSpan | None = None
    for at, event in zip(job.times, job.events, strict=True):
        begun = _begun(at, event)
        if begun is not None and not (current is not None and current.name == begun.name == "load"):
            if current is not None:
                yield replace(current, end=at)
            current = begun
        elif current is not None:
            current = _with(current, at, event)
    if current is not None:
        yield replace(current, end=job.times[-1])


def _begun(at: float, event: JobEvent) -> JobSpan | None:
    match event:
        case Queued():
            return JobSpan("queue", at, at, {"imagegen.queue.position": event.position})
        case Started():
            return JobSpan("start", at, at, {"imagegen.lane": event.lane})
        case Loading():
            return JobSpan("load", at, at)
        case PhaseChanged():
            return JobSpan(event.phase, at, at, {"imagegen.image.index": event.index})
        case _:
            return None


def _with(span: JobSpan, at: float, event: JobEvent) -> JobSpan:
    """The span, and what was heard while it lasted."""
    attributes: dict[str, Value] = {}
    moments: tuple[Moment, ...] = ()
    match event:
        case Loaded():
            attributes = {"imagegen.backend": event.backend, "imagegen.family": event.family}
        case ImageReady():
            attributes = {"imagegen.image.width": event.width, "imagegen.image.height": event.height}
        case Progress():
            moments = (Moment("step", at, {"step": event.step, "steps": event.steps}),)
        case Notice():
            moments = (Moment("notice", at, {"message": event.message}),)
    return replace(span, attributes={**span.attributes, **attributes}, moments=(*span.moments, *moments))
