"""A job as the answer of a chat: the object, and its chunks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf_imagegen.api.job_answers import ImageItem, Read, usage_of
from gguf_imagegen.api.streams.encoders import Eta, OpenAIEncoder
from gguf_imagegen.api.streams.frames import DONE, b64, error_frame, frame
from gguf_imagegen.jobs.job import Ended, ImageReady, Job, JobEvent, PreviewReady
from gguf_imagegen.planning.request import StreamOptions


def chat_answer(job: Job, read: Read, *, parts: bool) -> dict[str, Any]:
    """`data` says how each picture was made (seed, sampler, ...). Reads files."""
    pictures = [image_part(job, image.index, read(image.name)) for image in job.images]
    content = [content_part(picture) for picture in pictures] if parts else in_words(job)
    message = {"role": "assistant", "content": content, "refusal": None, "images": pictures}
    return {
        **_head(job, "chat.completion"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": _usage(job),
        "data": [ImageItem.of(job, image) for image in job.images],
        "warnings": job.warnings,
    }


def image_part(job: Job, index: int, image: bytes) -> dict[str, Any]:
    """OpenRouter's; without its `index` vLLM-Omni's."""
    url = f"data:image/{job.plan.output_format};base64,{b64(image).decode()}"
    return {"type": "image_url", "image_url": {"url": url}, "index": index}


def content_part(picture: Mapping[str, Any]) -> dict[str, Any]:
    return {key: picture[key] for key in ("type", "image_url")}


def in_words(job: Job) -> str:
    """What a client shows beside the pictures."""
    plan, size = job.plan, "x".join(map(str, job.plan.delivered))
    if plan.n == 1:
        return f"A picture of {size}, seed {plan.seed(0)}."
    if (first := plan.variation(0)) and (last := plan.variation(plan.n - 1)):
        return f"{plan.n} pictures of {size}, variation seeds {first.seed} to {last.seed}."
    return f"{plan.n} pictures of {size}, seeds {plan.seed(0)} to {plan.seed(plan.n - 1)}."


def _head(job: Job, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{job.id.removeprefix('job_')}",
        "object": kind,
        "created": int(job.created),
        "model": job.plan.name,
    }


def _usage(job: Job) -> dict[str, Any]:
    """Chat's token counts, zero because nothing is billed, and the measured times."""
    tokens = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return {**tokens, **usage_of([image.timings for image in job.images])}


class ChatEncoder:
    """`chat.completion.chunk` frames: the role, each picture as it is done, the end; progress as comments.

    The content is a line of text at the beginning, or nothing but pictures (`parts`). With
    `stream_options.include_usage` a last chunk without choices carries the usage, as OpenAI does it.
    """

    def __init__(self, job: Job, options: StreamOptions, read: Read, eta: Eta, *, parts: bool) -> None:
        self._job = job
        self._parts = parts
        self._options = options
        self._read = read
        self._comments = OpenAIEncoder(job, options, read, eta)

    def encode(self, id: int | None, event: JobEvent) -> bytes:
        words = "" if self._parts else in_words(self._job)
        begin = self._delta({"role": "assistant", "content": words}) if id == 0 else b""
        return begin + self._encode(id, event)

    def _encode(self, id: int | None, event: JobEvent) -> bytes:
        match event:
            case ImageReady():
                picture = image_part(self._job, event.index, self._read(event.name))
                content = {"content": [content_part(picture)]} if self._parts else {}
                return self._delta({**content, "images": [picture]})
            case Ended(error=None):
                return self._delta({}, "stop", warnings=self._job.warnings) + self._last() + DONE
            case Ended(error=error) if error is not None:
                return error_frame(error)
            case PreviewReady():
                return b""
            case _:
                return self._comments.encode(id, event)

    def _delta(self, delta: dict[str, Any], finish_reason: str | None = None, **fields: object) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return frame({**_head(self._job, "chat.completion.chunk"), "choices": [choice], **fields})

    def _last(self) -> bytes:
        if not self._options.include_usage:
            return b""
        head = _head(self._job, "chat.completion.chunk")
        return frame({**head, "choices": [], "usage": _usage(self._job)})
