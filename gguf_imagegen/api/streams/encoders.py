"""Job events as server-sent events, in llama-box's dialect, OpenAI's, both at once, and as our job stream.

Every encoder is a pure reading of a job's history: `encode(id, event)` gives the bytes to send, and may give
none. A place in the queue that has changed is no part of the history: its id is None. The shapes are
those of llama-box's `image.chunk` and of OpenAI's image streaming events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from gguf_imagegen.api.job_answers import Read, job_usage, openai_fields, usage_of
from gguf_imagegen.api.streams.frames import DONE, b64, comment, error_frame, frame
from gguf_imagegen.api.streams.image_progress import PartialCounter, ProgressItems
from gguf_imagegen.jobs.job import (
    Ended,
    ImageReady,
    Job,
    JobEvent,
    PreviewReady,
    Queued,
    Started,
)
from gguf_imagegen.planning.request import StreamOptions
from gguf_imagegen.vocabulary.events import Loading, Notice, PhaseChanged, Progress

Eta = Callable[[Job], float | None]


class Encoder(Protocol):
    """Turns the event with this id of one job's history into bytes, `b""` if there is nothing to say."""

    def encode(self, id: int | None, event: JobEvent) -> bytes: ...


class LlamaBoxEncoder:
    """A frame a step; `progress` of an image never falls and ends at exactly 100 with the image."""

    def __init__(self, job: Job, options: StreamOptions, read: Read, eta: Eta) -> None:
        self._job = job
        self._options = options
        self._read = read
        self._eta = eta
        self._progress = ProgressItems(job)
        self._last: dict[str, Any] | None = None

    def encode(self, id: int | None, event: JobEvent) -> bytes:
        match event:
            case Queued():
                return comment(queue_words(event))
            case PreviewReady(data=data) if (
                data and self._options.preview and not self._options.chunk_results
            ):
                return self._chunk({**self._progress.item(event.index), "b64_json": b64(event.data)})
            case ImageReady():
                return self._image(event)
            case Ended(error=None):
                return DONE
            case Ended(error=error) if error is not None:
                return error_frame(error)
            case _:
                item = self._progress.take(event)
                if item is None or item == self._last:
                    return b""
                self._last = item
                return self._chunk(item)

    def _image(self, event: ImageReady) -> bytes:
        final = self._progress.final(event)
        text = b64(self._read(event.name))
        last = len(self._job.images) == self._job.plan.n and event is self._job.images[-1]
        usage = usage_of([event.timings]) if last or not self._options.include_usage else None
        if not self._options.chunk_results:
            return self._last_chunk({**final, "b64_json": text}, usage)
        size = self._options.chunk_size
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        going = {**final, "progress": 99.0, "phase": "sending", "finish_reason": None}
        frames = [self._chunk({**going, "b64_json": piece}) for piece in pieces[:-1]]
        return b"".join([*frames, self._last_chunk({**final, "b64_json": pieces[-1]}, usage)])

    def _last_chunk(self, item: dict[str, Any], usage: dict[str, float] | None) -> bytes:
        """The one that ends an image, with what the request's sender should know."""
        return frame({**chunk(self._job, item, usage), "warnings": self._job.warnings})

    def _chunk(self, item: dict[str, Any]) -> bytes:
        return frame(chunk(self._job, item, None))


class OpenAIEncoder:
    """Partial images and one completed event per image; queue and progress as comments."""

    def __init__(self, job: Job, options: StreamOptions, read: Read, eta: Eta) -> None:
        self._job = job
        self._read = read
        self._eta = eta
        self._partials = PartialCounter(job)

    def encode(self, id: int | None, event: JobEvent) -> bytes:
        match event:
            case Queued():
                return comment(queue_words(event))
            case Progress(phase="sampling" | "hires"):
                eta = self._eta(self._job)
                words = f"progress {event.step}/{event.steps}"
                return comment(words if eta is None else f"{words} eta={eta:.1f}")
            case Loading():
                return comment(f"loading {event.done}/{event.total}")
            case PhaseChanged():
                return comment(f"phase {event.phase}")
            case PreviewReady(data=data) if data and self._partials.is_due(event):
                body = partial(self._job, event, self._partials.number(event))
                return frame(body, event=body["type"])
            case ImageReady():
                body = completed(self._job, event, b64(self._read(event.name)))
                return frame(body, event=body["type"])
            case Ended(error=None):
                return DONE
            case Ended(error=error) if error is not None:
                return error_frame(error)
            case _:
                return b""


class BothEncoder:
    """Every frame has OpenAI's `type` and keys, and llama-box's `data` list.

    With `ids` it is the job's own stream: each event of the history is one frame that carries its id,
    so a client that comes back continues with `Last-Event-ID`.
    """

    def __init__(self, job: Job, options: StreamOptions, read: Read, eta: Eta, *, ids: bool = False) -> None:
        self._job = job
        self._read = read
        self._eta = eta
        self._ids = ids
        self._progress = ProgressItems(job)
        self._partials = PartialCounter(job)

    def encode(self, id: int | None, event: JobEvent) -> bytes:
        id = id if self._ids else None
        prefix = openai_prefix(self._job)
        match event:
            case PreviewReady(data=data) if data:
                body = partial(self._job, event, self._partials.number(event))
                item = {**self._progress.item(event.index), "b64_json": body["b64_json"]}
            case ImageReady():
                body = completed(self._job, event, b64(self._read(event.name)))
                item = {**self._progress.final(event), "b64_json": body["b64_json"]}
                body["usage"] = {**body["usage"], **usage_of([event.timings])}
            case Ended(error=None):
                if not self._ids:
                    return DONE
                return self._own("job.succeeded", {"usage": job_usage(self._job)}, id) + DONE
            case Ended(error=error) if error is not None:
                return error_frame(error, id)
            case Queued():
                return self._own("job.queued", {"position": event.position, "eta": event.eta}, id)
            case Started():
                return self._own("job.started", {}, id)
            case Notice():
                return self._own("job.notice", {"message": event.message}, id)
            case _:
                image = event.index if isinstance(event, PreviewReady) else 0  # a dropped preview
                item = self._progress.take(event) or self._progress.item(image)
                body = {"type": f"{prefix}.progress", "eta": self._eta(self._job)}
        return frame({**chunk(self._job, item, None), **body}, event=body["type"], id=id)

    def _own(self, kind: str, fields: dict[str, Any], id: int | None) -> bytes:
        if not self._ids:
            return comment(f"{kind} " + " ".join(f"{key}={value}" for key, value in fields.items()))
        return frame({"type": kind, "job": self._job.id, **fields, "data": []}, event=kind, id=id)


def chunk(job: Job, item: dict[str, Any], usage: dict[str, float] | None) -> dict[str, Any]:
    return {
        "created": int(job.created),
        "model": job.plan.name,
        "object": "list",
        "type": "image.chunk",
        "usage": usage,
        "data": [item],
    }


def openai_prefix(job: Job) -> str:
    return "image_edit" if job.plan.operation == "edit" else "image_generation"


def partial(job: Job, event: PreviewReady, number: int) -> dict[str, Any]:
    return {
        "type": f"{openai_prefix(job)}.partial_image",
        "b64_json": b64(event.data),
        "partial_image_index": number,
        **openai_fields(job),
    }


def completed(job: Job, event: ImageReady, data: bytes) -> dict[str, Any]:
    return {
        "type": f"{openai_prefix(job)}.completed",
        "b64_json": data,
        **openai_fields(job),
        "usage": job_usage(None),
        "index": event.index,
        "seed": event.seed,
        "warnings": job.warnings,
    }


def queue_words(event: Queued) -> str:
    eta = "" if event.eta is None else f" eta={event.eta:.0f}"
    return f"queued position={event.position}{eta}"
