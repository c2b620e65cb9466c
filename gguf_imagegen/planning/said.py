"""What of a request says something: many clients send every field they know, most of them empty."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def said(data: Mapping[str, Any], counts: Collection[str] = ()) -> dict[str, Any]:
    """The fields without those that say nothing: null, empty ones, and 0 for `counts`."""
    return {
        key: value
        for key, value in data.items()
        if not (says_nothing(value) or (key in counts and _is_zero(value)))
    }


def says_nothing(value: object) -> bool:
    """Null, an empty text, list or object. An empty file is one, and damaged."""
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def _is_zero(value: object) -> bool:
    if isinstance(value, str):
        return value.strip() in ("0", "0.0")
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0
