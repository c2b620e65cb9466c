"""Reading request bodies: JSON or multipart, bounded while they stream in."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from gguf_imagegen.api.keys import SETTINGS
from gguf_imagegen.errors import ContentTypeUnsupported, InvalidRequest, PayloadTooLarge
from gguf_imagegen.schema.request import from_form

MAX_PARTS = 200
MAX_TEXT_PART = 1 << 20
READ_TIMEOUT = 300.0
"""Seconds in which a body must have arrived whole."""


async def read_body(request: web.Request) -> dict[str, Any]:
    """The request's fields, from JSON or a form; uploads are bytes."""
    limit = request.app[SETTINGS].max_body_bytes
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    try:
        if request.content_type == "multipart/form-data":
            return from_form(await asyncio.wait_for(_read_parts(request, limit), READ_TIMEOUT))
        body = await asyncio.wait_for(request.read(), READ_TIMEOUT)
    except asyncio.TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {READ_TIMEOUT:.0f} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limit) from None
    return parse_json(body)


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in these bytes, whatever the content type said (curl -d says it is a form)."""
    if not body.lstrip()[:1] == b"{":
        raise ContentTypeUnsupported(
            "the body must be a JSON object (Content-Type: application/json) or multipart/form-data"
        )
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as exc:
        where = f" at byte {exc.pos}" if isinstance(exc, json.JSONDecodeError) else ""
        raise InvalidRequest(f"the body is not valid JSON{where}") from None
    if not isinstance(data, dict):
        raise InvalidRequest("the body must be a JSON object")
    return data


async def _read_parts(request: web.Request, limit: int) -> list[tuple[str, str | bytes]]:
    parts: list[tuple[str, str | bytes]] = []
    left = limit
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader) or not part.name:
                raise InvalidRequest("every part of the form needs a name")
            if len(parts) >= MAX_PARTS:
                raise InvalidRequest(f"the form has more than {MAX_PARTS} parts")
            data = await _read_part(part, left, limit)
            left -= len(data)
            parts.append((part.name, data if _is_file(part) else _text(part.name, data)))
    except (ValueError, AssertionError, HttpProcessingError) as exc:
        raise InvalidRequest("the multipart body is malformed") from exc
    return parts


async def _read_part(part: BodyPartReader, left: int, limit: int) -> bytes:
    most = left if _is_file(part) else min(left, MAX_TEXT_PART)
    data = bytearray()
    while chunk := await part.read_chunk(1 << 16):
        data += chunk
        if len(data) > most:
            raise _too_large(limit if most == left else MAX_TEXT_PART)
    return bytes(data)


def _is_file(part: BodyPartReader) -> bool:
    return part.filename is not None or (part.headers.get("Content-Type", "")).startswith("image/")


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name}: is not UTF-8 text", param=name) from None


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {limit / 1048576:.1f} MiB, the limit of this server")
