"""The shapes of answers that say what went wrong, for the OpenAPI document."""

from __future__ import annotations

from gguf_imagegen.api.reply import Answer


class ErrorObject(Answer):
    message: str
    type: str
    param: str | None
    code: str


class FieldFault(Answer):
    """A field that is missing or of a wrong type, as FastAPI and so vLLM have it."""

    loc: list[str | int]
    msg: str
    type: str


class ErrorAnswer(Answer):
    """OpenAI's error object, and the `detail` that FastAPI-like clients read: a sentence, or the fields."""

    error: ErrorObject
    detail: str | list[FieldFault]


class NumericErrorObject(Answer):
    message: str
    type: str
    param: str | None
    code: int
    reason: str


class NumericErrorAnswer(Answer):
    """GPUStack's: `code` is the HTTP status, `reason` our own word."""

    error: NumericErrorObject
    detail: str | list[FieldFault]


class NativeErrorAnswer(Answer):
    """sd.cpp's: `error` is text."""

    error: str
    message: str
    type: str
    param: str | None
    code: str
    detail: str
