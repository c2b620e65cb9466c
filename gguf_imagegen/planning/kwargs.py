"""What a dialect wraps around the fields of a request, unwrapped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf_imagegen.planning import bounded_json
from gguf_imagegen.planning.said import said
from gguf_imagegen.vocabulary.errors import InvalidRequest


def with_kwargs(data: Mapping[str, Any]) -> dict[str, Any]:
    """Xinference's `kwargs`, a JSON object as text, merged into the fields around it, which win unless null.

    Its clients put whatever their method does not name in there (`num_inference_steps`, `request_id`), and
    expect a `url` when they say no `response_format` (`TextToImageRequest` and `create_variations` in
    https://github.com/xorbitsai/inference/blob/main/xinference/api/restful_api.py).
    """
    if data.get("kwargs") in (None, ""):
        return {key: value for key, value in data.items() if key != "kwargs"}
    rest = {key: value for key, value in said(data).items() if key != "kwargs"}
    return {"response_format": "url", **json_object(data["kwargs"], "kwargs"), **rest}


def json_object(value: object, name: str) -> dict[str, Any]:
    """An object, given as such or as JSON text."""
    if isinstance(value, str):
        try:
            value = bounded_json.loads(value.encode(), name, param=name)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name}: must be a JSON object", param=name)
    return value
