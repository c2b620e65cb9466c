"""What a route takes and gives, as a type, and what whole dialects have in common by the path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from gguf_imagegen.api import answers
from gguf_imagegen.vocabulary.errors import ImagegenError

JSON, FORM, EVENTS = "application/json", "multipart/form-data", "text/event-stream"


@dataclass(frozen=True)
class Param:
    """A query parameter or a header."""

    name: str
    where: str
    schema: Mapping[str, Any]
    description: str


@dataclass(frozen=True)
class Contract:
    """`answer` is a model or `None` for bytes of the type `media`; `also` holds further good statuses.

    `events` describes the frames of a `text/event-stream` answer. Of an answer in several types only JSON has
    the model.
    """

    answer: type[BaseModel] | None = answers.AnyObject
    request: type[BaseModel] | None = None
    required: tuple[str, ...] = ()
    form: bool = False
    errors: tuple[type[ImagegenError], ...] = ()
    status: int = 200
    also: Mapping[int, type[BaseModel] | None] = field(default_factory=dict)
    media: tuple[str, ...] = (JSON,)
    events: str = ""
    params: tuple[Param, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict)


TAGS = (
    ("/v1/images/inpainting", "Xinference"),
    ("/v1/images/ocr", "Xinference"),
    ("/v1/requests/", "Xinference"),
    ("/v1/models/{id}/requests/", "Xinference"),
    ("/v1/model_registrations", "Xinference"),
    ("/v1/images", "Images"),
    ("/v1/jobs", "Jobs"),
    ("/v1/events", "Jobs"),
    ("/v1/models", "Models"),
    ("/v1/chat/", "Chat"),
    ("/v1/responses", "Chat"),
    ("/v1/config", "OpenVINO Model Server"),
    ("/v3/", "OpenVINO Model Server"),
    ("/v1-openai/", "GPUStack"),
    ("/sdcpp/", "sd.cpp's server"),
    ("/openai/", "Azure's OpenAI"),
    ("/controlnet/", "AUTOMATIC1111"),
    ("/sdapi/", "AUTOMATIC1111"),
    ("/internal/", "AUTOMATIC1111"),
    ("", "Server"),
)
"""By the beginning of the path; the first that fits."""

ERROR_SHAPES = (
    ("/sdcpp/", answers.NativeErrorAnswer),
    ("/v1-openai/", answers.NumericErrorAnswer),
    ("", answers.ErrorAnswer),
)


def tag_of(path: str) -> str:
    return next(tag for start, tag in TAGS if path.startswith(start))


def error_shape(path: str) -> type[BaseModel]:
    """How handlers under this path say what went wrong."""
    return next(shape for start, shape in ERROR_SHAPES if path.startswith(start))


def doc_of(route: web.RouteDef) -> str:
    return inspect.getdoc(route.handler) or inspect.getdoc(inspect.unwrap(route.handler)) or ""
