"""The shapes of sd.cpp's answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gguf_imagegen.api.reply import Answer


class NativeCapabilities(Answer):
    model: dict[str, str]
    current_mode: str
    supported_modes: list[str]
    defaults: dict[str, Any]
    defaults_by_mode: dict[str, dict[str, Any]]
    limits: dict[str, int]
    samplers: list[str]
    schedulers: list[str]
    output_formats: list[str]
    output_formats_by_mode: dict[str, list[str]]
    features: dict[str, bool]
    features_by_mode: dict[str, dict[str, bool]]
    loras: list[dict[str, str]]
    upscalers: list[dict[str, str]]


class NativeSubmitted(Answer):
    id: str
    kind: Literal["img_gen"]
    status: Literal["queued", "generating", "completed", "failed", "cancelled"]
    created: int
    poll_url: str
    warnings: list[str]


class NativeJob(Answer):
    """`result` has the pictures of a completed job; `progress` is 0 to 1."""

    id: str
    kind: Literal["img_gen"]
    status: Literal["queued", "generating", "completed", "failed", "cancelled"]
    created: int
    started: int | None
    completed: int | None
    queue_position: int
    result: dict[str, Any] | None
    error: dict[str, str] | None
    progress: float = Field(ge=0, le=1)
    step: int
    steps: int
    eta: float | None
    model: str
    warnings: list[str]
