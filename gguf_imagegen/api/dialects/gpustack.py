"""GPUStack: errors whose codes are numbers, and what its gateway needs of an instance that it calls on /v1.

Under /v1-openai errors are as GPUStack and llama-box have them: `{"code": 400, "message": "Invalid image",
"type": "invalid_request_error"}` is what
https://github.com/gpustack/gpustack/blob/a655ad28/docs/user-guide/image-generation-apis.md shows.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gguf_imagegen.api.streams.encoders import Encoder
from gguf_imagegen.api.streams.frames import frame
from gguf_imagegen.jobs.job import Ended, JobEvent
from gguf_imagegen.vocabulary.errors import ImagegenError

PATHS = "/v1-openai/"
GATEWAY = ("x-gpustack-model", "X-Target-Port")
"""Headers that the gateway forwards with a request."""


def has_numbers(request: web.Request) -> bool:
    """Whether errors of this request have numbers for codes."""
    return request.path.startswith(PATHS)


def through_gateway(request: web.Request) -> bool:
    """Whether GPUStack's gateway reads the answer: it parses llama-box's chunks, whole ones in each read."""
    return any(name in request.headers for name in GATEWAY)


def numeric_body(error: ImagegenError) -> dict[str, Any]:
    """The error with its HTTP status as `code`, our own word as `reason`."""
    named = {"message": error.message, "type": error.type, "param": error.param}
    return {**error.body(), "error": {**named, "code": error.status, "reason": error.code}}


class NumericErrors:
    """A stream whose error frame has the number, too."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def encode(self, index: int | None, event: JobEvent) -> bytes:
        match event:
            case Ended(error=error) if error is not None:
                return frame(numeric_body(error), event="error")
            case _:
                return self._encoder.encode(index, event)
