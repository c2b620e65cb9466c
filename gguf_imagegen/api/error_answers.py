"""The shapes of answers that say what went wrong, for the OpenAPI document."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class FieldFault(BaseModel):
    """A field that is missing or of a wrong type, as FastAPI and so vLLM have it."""

    loc: list[str | int]
    msg: str
    type: str


class ErrorAnswer(BaseModel):
    """OpenAI's error object, and the `detail` that FastAPI-like clients read: a sentence, or the fields."""

    error: ErrorObject
    detail: str | list[FieldFault]


class NumericErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: int
    reason: str


class NumericErrorAnswer(BaseModel):
    """GPUStack's: `code` is the HTTP status, `reason` our own word."""

    error: NumericErrorObject
    detail: str | list[FieldFault]


class NativeErrorAnswer(BaseModel):
    """sd.cpp's: `error` is text."""

    error: str
    message: str
    type: str
    param: str | None
    code: str
    detail: str
