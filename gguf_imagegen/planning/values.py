"""Values of a request as clients write them, made into what its types take; pydantic's validators."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import ValidationInfo

from gguf_imagegen.pictures.data_urls import decode_data_url
from gguf_imagegen.planning import bounded_json
from gguf_imagegen.planning.bounded_json import json_object
from gguf_imagegen.planning.said import says_nothing


def size(value: object) -> object:
    if value in (None, "auto", "original", "0x0"):
        return None
    match = re.fullmatch(r"\s*(\d{1,6})\s*[xX*×]\s*(\d{1,6})\s*", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be 'auto' or WIDTHxHEIGHT such as 512x512")
    width, height = int(match[1]), int(match[2])
    return width or height, height or width


def image(value: object, info: ValidationInfo) -> object:
    """An upload: bytes of a form part, a data URL, bare base64, or OpenAI's `{"image_url": …}` object."""
    if isinstance(value, Mapping):
        value = value.get("image_url", value.get("b64_json"))
        if isinstance(value, Mapping):
            value = value.get("url")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return decode_data_url(value, info.field_name or "image")
    raise ValueError("must be a file, a data URL or base64")


def jpeg(value: object) -> object:
    return "jpeg" if value == "jpg" else value


def base64(value: object) -> object:
    return "b64_json" if value == "base64" else value


def off(value: object) -> object:
    return "none" if value in ("disabled", "off", False) else value


def images(value: object) -> object:
    every = value if isinstance(value, list | tuple) else [value]
    return [each for each in every if not says_nothing(each)]


def loras(value: object) -> object:
    if isinstance(value, str):
        try:
            value = bounded_json.loads(value.encode() or b"[]", "lora", param="lora")
        except (ValueError, RecursionError):
            raise ValueError('must be JSON such as [{"name": "x", "scale": 0.8}]') from None
    return [value] if isinstance(value, Mapping) else value


def mapping(value: object) -> object:
    return json_object(value, "lora_alphas") if isinstance(value, str) else value


def unicode(text: str) -> str:
    """JSON can say half of a surrogate pair, which no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("contains a lone surrogate, which is not valid Unicode") from None
    return text


def random_seed(value: object) -> object:
    return None if value in (None, "", "null", -1, "-1") else value
