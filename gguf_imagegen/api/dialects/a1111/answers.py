"""The shapes of AUTOMATIC1111's answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from gguf_imagegen.api.reply import Answer


class A1111Answer(Answer):
    """Pictures in base64; `info` is JSON text, `parameters` the request's keys."""

    images: list[str]
    parameters: dict[str, Any]
    info: str
    warnings: list[str]


class A1111Progress(Answer):
    progress: float = Field(ge=0, le=1)
    eta_relative: float
    state: dict[str, Any]
    current_image: str | None
    textinfo: str | None
    current_task: str | None


class InternalProgress(Answer):
    """`live_preview` is a data URL, null where the client has it."""

    active: bool
    queued: bool
    completed: bool
    progress: float | None
    eta: float | None
    live_preview: str | None
    id_live_preview: int
    textinfo: str | None


class ExtrasAnswer(Answer):
    html_info: str
    image: str


class ExtrasBatchAnswer(Answer):
    html_info: str
    images: list[str]


class DetectAnswer(Answer):
    """`images` are PNG files in base64."""

    images: list[str]
    info: str


class PngInfo(Answer):
    info: str
    items: dict[str, Any]
    parameters: dict[str, Any]
