"""Job events as server-sent events, in llama-box's dialect, OpenAI's, both at once, and as our job stream.

Every encoder is a pure reading of a job's history: `encode(index, event)` gives the bytes to send, and may
give none. Frames follow https://html.spec.whatwg.org/multipage/server-sent-events.html, one line of JSON
each; the shapes are those of llama-box's `image.chunk` and of OpenAI's image streaming events.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from typing import Any, Protocol

from gguf_imagegen.api.shapes import job_usage, openai_fields, usage_of
from gguf_imagegen.errors import ImagegenError
from gguf_imagegen.events import Loaded, Loading, Notice, PhaseChanged, Progress
from gguf_imagegen.jobs.job import (
    Ended,
    ImageReady,
    Job,
    JobEvent,
    PreviewReady,
    Queued,
    Started,
    image_fraction,
)
from gguf_imagegen.schema.request import StreamOptions

MARK = secrets.token_hex(16)
"""Where a picture goes into JSON, past the encoder, which would look at each of a million characters."""
DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": hb\n\n"
HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",
}

Read = Callable[[str], bytes]
"""Gives the encoded image stored under a name."""
Eta = Callable[[Job], float | None]


def frame(data: dict[str, Any], event: str | None = None, id: int | None = None) -> bytes:
    """One event: optional `id` and `event` lines, one `data` line. A value of bytes is base64 already."""
    head = (f"id: {id}\n" if id is not None else "") + (f"event: {event}\n" if event else "")
    pictures: list[bytes] = []

    def put_off(value: bytes) -> str:
        pictures.append(value)
        return MARK

    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), default=put_off)
    first, *rest = f"{head}data: {text}\n\n".encode().split(MARK.encode())
    return b"".join([first, *chain.from_iterable(zip(pictures, rest, strict=True))])


def comment(text: str) -> bytes:
    return f": {text}\n\n".encode()


def error_frame(error: ImagegenError, id: int | None = None) -> bytes:
    return frame(error.body(), event="error", id=id)


@lru_cache(maxsize=4)
def b64(data: bytes) -> bytes:
    """Once for all who follow a job: they ask for the same picture at nearly the same time."""
    return base64.b64encode(data)


class Encoder(Protocol):
    """Turns the event with this index of one job's history into bytes, `b""` if there is nothing to say."""

    def encode(self, index: int, event: JobEvent) -> bytes: ...


class LlamaBoxEncoder:
    """A frame a step; `progress` of an image never falls and ends at exactly 100 with the image."""

    def __init__(self, job: Job, options: StreamOptions, read: Read, eta: Eta) -> None:
        self._job = job
        self._options = options
        self._read = read
        self._eta = eta
        self._progress = ProgressItems(job)

    def encode(self, index: int, event: JobEvent) -> bytes:
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
                return self._chunk(item) if item else b""

    def _image(self, event: ImageReady) -> bytes:
        final = self._progress.final(event)
        text = b64(self._read(event.name))
        last = len(self._job.images) == self._job.plan.spec.n and event is self._job.images[-1]
        usage = usage_of([event.timings]) if last or not self._options.include_usage else None
        if not self._options.chunk_results:
            return self._chunk({**final, "b64_json": text}, usage)
        size = self._options.chunk_size
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        going = {**final, "progress": 99.0, "phase": "sending", "finish_reason": None}
        frames = [self._chunk({**going, "b64_json": piece}) for piece in pieces[:-1]]
        return b"".join([*frames, self._chunk({**final, "b64_json": pieces[-1]}, usage)])

    def _chunk(self, item: dict[str, Any], usage: dict[str, float] | None = None) -> bytes:
        return frame(chunk(self._job, item, usage))


class OpenAIEncoder:
    """Partial images and one completed event per image; queue and progress as comments."""

    def __init__(self, job: Job, options: StreamOptions, read: Read, eta: Eta) -> None:
        self._job = job
        self._read = read
        self._eta = eta
        self._partials = PartialCounter()

    def encode(self, index: int, event: JobEvent) -> bytes:
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
            case PreviewReady(data=data) if data and event.step in self._job.plan.partial_steps:
                body = partial(self._job, event, self._partials.next(event.index))
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

    With `ids` it is the job's own stream: each event of the history is one frame that carries its index,
    so a client that comes back continues with `Last-Event-ID`.
    """

    def __init__(self, job: Job, options: StreamOptions, read: Read, eta: Eta, *, ids: bool = False) -> None:
        self._job = job
        self._read = read
        self._eta = eta
        self._ids = ids
        self._progress = ProgressItems(job)
        self._partials = PartialCounter()

    def encode(self, index: int, event: JobEvent) -> bytes:
        id = index if self._ids else None
        prefix = openai_prefix(self._job)
        match event:
            case PreviewReady(data=data) if data:
                body = partial(self._job, event, self._partials.next(event.index))
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


class ProgressItems:
    """llama-box progress items, the highest so far for each image."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._items: dict[int, dict[str, Any]] = {}

    def item(self, index: int) -> dict[str, Any]:
        return self._items.get(index) or self._make(index, 0, self._steps, 0.0, "queued")

    def take(self, event: JobEvent) -> dict[str, Any] | None:
        """The item after this event, None if the event moves no image."""
        match event:
            case Loading() | Loaded():
                return self._set(len(self._job.images), "loading")
            case PhaseChanged():
                return self._set(event.index, event.phase)
            case Progress(phase="sampling" | "hires"):
                done = min(99.0, round(100 * image_fraction(event, self._job.plan), 2))
                return self._set(event.index, event.phase, done, event.step, event.steps)
            case Progress():
                return self._set(event.index, event.phase)
            case _:
                return None

    def final(self, event: ImageReady) -> dict[str, Any]:
        steps = event.timings.steps
        item = self._make(event.index, steps, steps, 100.0, "done")
        return {**item, "finish_reason": "stop", "seed": event.seed}

    @property
    def _steps(self) -> int:
        return self._job.plan.spec.sampling_steps

    def _set(
        self, index: int, phase: str, progress: float = 0.0, step: int = 0, steps: int = 0
    ) -> dict[str, Any]:
        old = self.item(index)
        if progress < old["progress"] or not steps:
            progress, step, steps = old["progress"], old["progressed_steps"], old["progress_steps"]
        self._items[index] = self._make(index, step, steps, progress, phase)
        return self._items[index]

    def _make(self, index: int, step: int, steps: int, progress: float, phase: str) -> dict[str, Any]:
        return {
            "index": index,
            "object": "image.chunk",
            "progressed_steps": step,
            "progress_steps": steps,
            "progress": progress,
            "phase": phase,
            "finish_reason": None,
        }


class PartialCounter:
    """`partial_image_index` counts from 0 for each image."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}

    def next(self, index: int) -> int:
        number = self._next.get(index, 0)
        self._next[index] = number + 1
        return number


def chunk(job: Job, item: dict[str, Any], usage: dict[str, float] | None) -> dict[str, Any]:
    return {
        "created": int(job.created),
        "model": job.plan.entry.id,
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
    }


def queue_words(event: Queued) -> str:
    eta = "" if event.eta is None else f" eta={event.eta:.0f}"
    return f"queued position={event.position}{eta}"
