"""What fields of a request are made of: further names, and what counts as not said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from gguf_imagegen.planning.said import said

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Lenient(BaseModel):
    """Unknown keys and what is empty are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, data: object) -> object:
        return said(data, ("steps", "width", "height")) if isinstance(data, Mapping) else data


def option(*names: str, **kwargs: Any) -> Any:
    """A field with further names; the first one is canonical."""
    return Field(validation_alias=AliasChoices(*names), **kwargs)
