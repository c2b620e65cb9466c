"""From the parts of a form to the fields of a request."""

from __future__ import annotations

import re
from typing import Any

from gguf_imagegen.planning.bounded_json import json_object
from gguf_imagegen.planning.engine_fields import MAX_LAYERS
from gguf_imagegen.planning.request import FLAT


def from_form(parts: list[tuple[str, str | bytes]]) -> dict[str, Any]:
    """The request data of multipart parts: `image[]` and `image[0]` become a list, `stream_options[x]` is
    `stream_options_x`, `lora[0][id]` a list of objects. Values stay text.
    """
    data: dict[str, Any] = {}
    latest_lora: dict[str, dict[str, Any]] = {}
    for name, value in parts:
        if value == "":
            continue
        match = re.fullmatch(r"(image|images|init_images|url)(?:\[\d*\])?", name)
        if match:
            data.setdefault("image", []).append(value)
        elif match := re.fullmatch(r"stream_options\[(\w+)\]", name):
            data[FLAT + match[1]] = value
        elif match := re.fullmatch(r"lora\[(\d*)\]\[(\w+)\]", name):
            loras = data.setdefault("lora", [])
            if isinstance(loras, list):
                _add_to_lora(loras, latest_lora, match[1], match[2], value)
        elif name in ("stream_options", "hires") and isinstance(value, str):
            data[name] = json_object(value, name)
        elif name == "slg_skip_layers" and isinstance(value, str):
            data[name] = [part for part in re.split(r"[,\s\[\]]+", value, maxsplit=MAX_LAYERS + 2) if part]
        else:
            data[name] = value
    return data


def _add_to_lora(
    loras: list[Any], latest: dict[str, dict[str, Any]], index: str, key: str, value: str | bytes
) -> None:
    """Parts of one index make one LoRA; `lora[][id]` starts a new one whenever its key is there already."""
    if index not in latest or (not index and key in latest[index]):
        latest[index] = {}
        loras.append(latest[index])
    latest[index][key] = value
