"""What an endpoint takes and gives, said beside its handler; the OpenAPI document is made from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel

from gguf_imagegen.api import answers
from gguf_imagegen.api.job_answers import DryRun, JobObject
from gguf_imagegen.vocabulary import errors
from gguf_imagegen.vocabulary.errors import ImagegenError

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

JSON, FORM, EVENTS = "application/json", "multipart/form-data", "text/event-stream"
ATTRIBUTE = "__contract__"
"""Where a handler carries its contract; `functools.wraps` copies it."""

READING = (errors.InvalidRequest, errors.PayloadTooLarge, errors.ContentTypeUnsupported)
ADMIN = (errors.Forbidden,)
MODEL = (errors.ModelNotFound, errors.ModelNotDownloaded)
PICTURE = (
    *READING, *MODEL, errors.InvalidSize, errors.InvalidImage, errors.UnknownSampler, errors.PromptTooLong,
    errors.UnsupportedOperation, errors.MissingComponent, errors.InvalidModelFile, errors.QueueFull,
    errors.Cancelled, errors.GenerationFailed, errors.WorkerCrashed, errors.ModelLoadFailed,
    errors.InsufficientMemory, errors.StorageFailed, errors.ShuttingDown, errors.EnginePaused,
)  # fmt: skip
"""What can go wrong from the body of a request to its pictures."""


@dataclass(frozen=True)
class Param:
    """A query parameter or a header."""

    name: str
    where: str
    schema: Mapping[str, Any]
    description: str


PREFER = Param("Prefer", "header", {"type": "string", "enum": ["respond-async"]}, "answer 202 and a job")
IDEMPOTENCY = Param(
    "Idempotency-Key", "header", {"type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$"},
    "requests with one key and one body share one job",
)  # fmt: skip
ASYNC: Mapping[int, type[BaseModel]] = {202: JobObject}
PICTURE_TEXT = "data:image/png;base64,..."
"""Stands for a picture in examples."""


@dataclass(frozen=True)
class Contract:
    """`answer` is a model or `None` for bytes of the type `media`; `also` holds further good statuses.

    `events` describes the frames of a `text/event-stream` answer. Of an answer in several types only JSON has
    the model. An endpoint that only refuses has the status 0. With the field `dry_run` the answer is one of
    that model, whatever it is otherwise.
    """

    answer: type[BaseModel] | None = answers.AnyObject
    request: type[BaseModel] | None = None
    required: tuple[str, ...] = ()
    form: bool = False
    errors: tuple[type[ImagegenError], ...] = ()
    dry_run: type[BaseModel] | None = None
    status: int = 200
    also: Mapping[int, type[BaseModel] | None] = field(default_factory=dict)
    media: tuple[str, ...] = (JSON,)
    events: str = ""
    params: tuple[Param, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict)


def endpoint(
    answer: type[BaseModel] | None = answers.AnyObject, **contract: Any
) -> Callable[[Endpoint], Endpoint]:
    """Give a handler its contract; the arguments are those of `Contract`."""
    return with_contract(Contract(answer, **contract))


def picture_contract(
    answer: type[BaseModel], request: type[BaseModel], *, params: tuple[Param, ...] = (), **contract: Any
) -> Contract:
    """That of routes that wait for pictures, unless the client prefers not to."""
    return Contract(
        answer,
        request,
        dry_run=DryRun,
        also=ASYNC,
        params=(PREFER, IDEMPOTENCY, *params),
        **{"errors": PICTURE, **contract},
    )


def with_contract(contract: Contract) -> Callable[[Endpoint], Endpoint]:
    def attach(handler: Endpoint) -> Endpoint:
        setattr(handler, ATTRIBUTE, contract)
        return handler

    return attach


def contract_of(route: web.RouteDef) -> Contract | None:
    return getattr(route.handler, ATTRIBUTE, None)


def doc_of(route: web.RouteDef) -> str:
    return inspect.getdoc(route.handler) or inspect.getdoc(inspect.unwrap(route.handler)) or ""
