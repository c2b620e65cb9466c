"""`kwargs`, in which Xinference's clients put the fields that their methods have no argument for.

`TextToImageRequest` and `create_variations` in
https://github.com/xorbitsai/inference/blob/main/xinference/api/restful_api.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf_imagegen.api.openapi.schemas import JSON_OBJECT, Schema
from gguf_imagegen.planning.bounded_json import json_object
from gguf_imagegen.planning.said import said


def with_kwargs(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """A JSON object, perhaps as text, merged into the fields around it, which win unless null.

    Its clients expect a `url` when they say no `response_format`. Raises InvalidRequest on "kwargs".
    """
    if "kwargs" not in fields:
        return fields
    rest = {key: value for key, value in fields.items() if key != "kwargs"}
    if fields["kwargs"] in (None, ""):
        return rest
    return {"response_format": "url", **json_object(fields["kwargs"], "kwargs"), **said(rest)}


def describe_kwargs(schemas: dict[str, Schema]) -> None:
    schemas["ImageRequest"]["properties"]["kwargs"] = {
        **JSON_OBJECT,
        "description": "further fields, as Xinference's clients send them; others go before them",
    }
