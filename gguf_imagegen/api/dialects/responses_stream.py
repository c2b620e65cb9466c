"""A job as a response of OpenAI's Responses API: the object, and its events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from gguf_imagegen.api.job_answers import Read, openai_fields, revised_prompt
from gguf_imagegen.api.reply import Answer
from gguf_imagegen.api.streams.encoders import Eta, OpenAIEncoder
from gguf_imagegen.api.streams.frames import b64, frame
from gguf_imagegen.api.streams.image_progress import PartialCounter
from gguf_imagegen.jobs.job import Ended, ImageReady, Job, JobEvent, PreviewReady
from gguf_imagegen.planning.request import StreamOptions
from gguf_imagegen.vocabulary.events import PhaseChanged

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
STATUS: Mapping[str, Status] = {
    "queued": "queued",
    "running": "in_progress",
    "succeeded": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}
USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}
"""Nothing is billed."""
CALL = "response.image_generation_call"


class ResponseError(Answer):
    """In OpenAI's words, which have no other code for this."""

    code: Literal["server_error"] = "server_error"
    message: str


class ResponseAnswer(Answer):
    """The output's items are of the type `image_generation_call`, their `result` is base64."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    model: str
    output: list[dict[str, Any]]
    error: ResponseError | None
    incomplete_details: None = None
    instructions: None = None
    metadata: dict[str, str] = Field({})
    parallel_tool_calls: bool = False
    temperature: float | None = None
    top_p: float | None = None
    tool_choice: Literal["auto"] = "auto"
    tools: list[dict[str, str]] = Field([{"type": "image_generation"}])
    usage: dict[str, Any] = USAGE
    warnings: list[str]


def response_object(
    job: Job, read: Read | None = None, output: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The response as it is now; `read` gives the pictures, unless `output` has them. Reads files."""
    if output is None:
        output = [_call(job, image.index, read(image.name)) for image in job.images] if read else []
    answer = ResponseAnswer(
        id=f"resp_{job.id.removeprefix('job_')}",
        created_at=int(job.created),
        status=STATUS[job.status],
        model=job.plan.name,
        output=output,
        error=ResponseError(message=job.error.message) if job.error else None,
        warnings=job.warnings,
    )
    return answer.model_dump()


def _id(job: Job, index: int) -> str:
    return f"ig_{job.id.removeprefix('job_')}_{index}"


def _call(job: Job, index: int, image: bytes | None) -> dict[str, Any]:
    """An item of the output; without a picture one that is being made."""
    made = {key: value for key, value in openai_fields(job).items() if key != "created_at"}
    return {
        "id": _id(job, index),
        "type": "image_generation_call",
        "status": "in_progress" if image is None else "completed",
        "result": None if image is None else b64(image).decode(),
        "revised_prompt": revised_prompt(job.plan),
        "action": "edit" if job.plan.operation == "edit" else "generate",
        "seed": job.plan.seed(index),
        **made,
    }


class ResponsesEncoder:
    """Numbered events from `response.created` to `response.completed` or `response.failed`; no `[DONE]`.

    Queue and progress are comments.
    """

    def __init__(self, job: Job, options: StreamOptions, read: Read, eta: Eta) -> None:
        self._job = job
        self._read = read
        self._comments = OpenAIEncoder(job, options, read, eta)
        self._partials = PartialCounter(job)
        self._sampling: set[int] = set()
        self._items: list[dict[str, Any]] = []
        self._number = -1

    def encode(self, id: int | None, event: JobEvent) -> bytes:
        return (self._begin() if id == 0 else b"") + self._encode(id, event)

    def _begin(self) -> bytes:
        response = response_object(self._job)
        frames = [self._frame(f"response.{word}", response=response) for word in ("created", "in_progress")]
        for index in range(self._job.plan.n):
            item = _call(self._job, index, None)
            frames.append(self._frame("response.output_item.added", output_index=index, item=item))
            frames.append(self._call_frame("in_progress", index))
        return b"".join(frames)

    def _encode(self, id: int | None, event: JobEvent) -> bytes:
        match event:
            case PhaseChanged(phase="sampling") if event.index not in self._sampling:
                self._sampling.add(event.index)
                return self._call_frame("generating", event.index)
            case PreviewReady(data=data):
                return self._partial(event) if data and self._partials.is_due(event) else b""
            case ImageReady():
                return self._image(event)
            case Ended(error=None):
                response = response_object(self._job, output=self._items)
                return self._frame("response.completed", response={**response, "status": "completed"})
            case Ended(error=error) if error is not None:
                response = response_object(self._job, output=self._items)
                failed = {"status": "failed", "error": {"code": "server_error", "message": error.message}}
                return self._frame("response.failed", response={**response, **failed})
            case _:
                return self._comments.encode(id, event)

    def _partial(self, event: PreviewReady) -> bytes:
        made = {key: value for key, value in openai_fields(self._job).items() if key != "created_at"}
        number = self._partials.number(event)
        picture = {"partial_image_b64": b64(event.data), "partial_image_index": number}
        return self._call_frame("partial_image", event.index, **picture, **made)

    def _image(self, event: ImageReady) -> bytes:
        item = _call(self._job, event.index, self._read(event.name))
        self._items.append(item)
        drawn = self._call_frame("completed", event.index)
        return drawn + self._frame("response.output_item.done", output_index=event.index, item=item)

    def _call_frame(self, kind: str, index: int, **fields: object) -> bytes:
        return self._frame(f"{CALL}.{kind}", item_id=_id(self._job, index), output_index=index, **fields)

    def _frame(self, kind: str, **fields: object) -> bytes:
        self._number += 1
        return frame({"type": kind, "sequence_number": self._number, **fields}, event=kind)
