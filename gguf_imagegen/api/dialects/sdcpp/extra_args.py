"""sd.cpp's native fields inside a prompt: `<sd_cpp_extra_args>{"sample_params": …}</sd_cpp_extra_args>`.

A client of any dialect can say there what its own dialect has no field for (sd.cpp's examples/server/api.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gguf_imagegen.api.dialects.sdcpp.request import merged, to_fields
from gguf_imagegen.planning import bounded_json
from gguf_imagegen.vocabulary.errors import InvalidRequest

OPENING, CLOSING = "<sd_cpp_extra_args>", "</sd_cpp_extra_args>"
MAX_BLOCKS = 8
"""Blocks in one prompt; sd.cpp reads only the first one."""


def with_extra_args(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields with those of every such block in the prompt, and the prompt without the blocks.

    They go before fields of the same meaning, later blocks before earlier ones. Raises InvalidRequest on
    "prompt" if a block is no JSON object, holds a wrong type or does not end, or if there are too many.
    """
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or OPENING not in prompt:
        return fields
    text, *parts = prompt.split(OPENING)
    if len(parts) > MAX_BLOCKS:
        raise _refusal(f"holds {len(parts)} blocks of {OPENING}; at most {MAX_BLOCKS} are taken")
    said: dict[str, Any] = {}
    for part in parts:
        block, closing, after = part.partition(CLOSING)
        if not closing:
            raise _refusal(f"{OPENING} needs its {CLOSING}")
        said = merged(said, _fields_of(block))
        text += after
    return merged({**fields, "prompt": text.strip()}, said)


def _fields_of(block: str) -> dict[str, Any]:
    try:
        native = (
            bounded_json.loads(block.encode(), f"prompt: what stands in {OPENING}", param="prompt")
            if block.strip()
            else {}
        )
    except (ValueError, RecursionError) as exc:
        where = f" at character {exc.pos}" if isinstance(exc, json.JSONDecodeError) else ""
        raise _refusal(f"what stands in {OPENING} is not valid JSON{where}") from None
    if not isinstance(native, dict):
        raise _refusal(f"what stands in {OPENING} must be a JSON object")
    try:
        return to_fields(native)
    except InvalidRequest as exc:
        raise _refusal(f"in {OPENING}, {exc}") from exc


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(f"prompt: {reason}", param="prompt")
