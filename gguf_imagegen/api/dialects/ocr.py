"""The text in a picture, as Xinference answers it.

Request and answers: `create_ocr` in
https://github.com/xorbitsai/inference/blob/main/xinference/api/restful_api.py, and `DeepDocModel` in
https://github.com/xorbitsai/inference/blob/main/xinference/model/image/ocr/deepdoc.py.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from aiohttp import web
from msgspec import to_builtins
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, RootModel

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import caller_of
from gguf_imagegen.api.dialects.kwargs import with_kwargs
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import PICTURE_TEXT, READING, endpoint
from gguf_imagegen.api.reply import Answer, reply
from gguf_imagegen.planning.faults import validated
from gguf_imagegen.planning.request import Upload
from gguf_imagegen.vocabulary.engine import Read
from gguf_imagegen.vocabulary.errors import (
    InsufficientMemory,
    InvalidImage,
    InvalidRequest,
    NotInstalled,
    QueueFull,
    ReadingFailed,
    UnsupportedOperation,
    WorkerCrashed,
)

TASK = "ocr"
"""The one of DeepDoc's tasks that is served."""


def _only(value: object) -> object:
    """A form's parts are a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class OcrRequest(BaseModel):
    """`kwargs` is a JSON object with `task` or `return_dict` in it; `model` may be anything."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    image: Annotated[Upload | None, BeforeValidator(_only)] = None
    model: str | None = Field(None, max_length=200)
    task: str = Field(TASK, max_length=200)
    return_dict: bool = False


class OcrLine(Answer):
    """`box` is the line's corners in pixels, clockwise from the top left one; `score` is 0 to 1."""

    text: str
    score: float
    box: list[tuple[float, float]]


class OcrLines(Answer):
    """With `return_dict`."""

    task: Literal["ocr"]
    lines: list[OcrLine]


class OcrAnswer(RootModel[str | OcrLines]):
    """The text, its lines parted by newlines."""


@endpoint(
    OcrAnswer,
    request=OcrRequest,
    required=("image",),
    form=True,
    errors=(
        *READING, InvalidImage, UnsupportedOperation, QueueFull, ReadingFailed, WorkerCrashed,
        InsufficientMemory, NotInstalled,
    ),
    example={"image": PICTURE_TEXT},
)  # fmt: skip
async def ocr(request: web.Request) -> web.Response:
    """POST /v1/images/ocr: the text in `image`, line by line; with `return_dict` where each line is."""
    reader, caller = request.app[SERVICE].reader, caller_of(request)
    reader.check(caller)
    wanted = await asyncio.to_thread(_parsed, await read_body(request))
    assert wanted.image is not None
    max_pixels = request.app[SERVICE].settings.max_input_pixels
    lines = await reader.read(Read(wanted.image, max_pixels), caller)
    if wanted.return_dict:
        return reply(OcrAnswer, {"task": TASK, "lines": to_builtins(lines)})
    return reply(OcrAnswer, "\n".join(line.text for line in lines))


def _parsed(fields: dict[str, Any]) -> OcrRequest:
    wanted = validated(OcrRequest, with_kwargs(fields))
    if wanted.image is None:
        raise InvalidRequest("image: is required", param="image")
    if wanted.task not in ("", TASK):
        raise UnsupportedOperation(
            f"task: {wanted.task[:60]!r} is not served here; {TASK!r} reads the text", param="task"
        )
    return wanted
