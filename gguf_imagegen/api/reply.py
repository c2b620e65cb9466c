"""JSON answers: built by the models that document them, so that nothing undocumented is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base of all answers that are objects with known keys."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Answered(Exception):
    """What is answered in the place of what a handler does; the middleware sends it."""

    def __init__(self, response: web.Response) -> None:
        super().__init__(response.status)
        self.response = response


def reply(
    model: type[BaseModel],
    data: object,
    *,
    status: int = 200,
    reason: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """The answer that this model makes of the data; a ValidationError is a defect of ours."""
    body = encoded(model, data)
    return web.Response(
        body=body,
        status=status,
        reason=reason,
        headers=headers,
        content_type="application/json",
        charset="utf-8",
    )


def encoded(model: type[BaseModel], data: Any) -> bytes:
    """JSON of the fields that the data has. Text is not copied on the way into the model."""
    made = model.model_validate(data)
    return made.__pydantic_serializer__.to_json(made, exclude_unset=True)
