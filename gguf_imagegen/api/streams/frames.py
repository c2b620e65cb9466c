"""Server-sent events as bytes, one line of JSON each, pictures spliced in.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import base64
import json
import secrets
from functools import lru_cache
from itertools import chain
from typing import Any

from gguf_imagegen.vocabulary.errors import ImagegenError

MARK = secrets.token_hex(16)
"""Where a picture goes into JSON, past the encoder, which would look at each of a million characters."""
DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": hb\n\n"
HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",
}


def frame(data: dict[str, Any], event: str | None = None, id: int | None = None) -> bytes:
    """One event: optional `id` and `event` lines, one `data` line. A value of bytes is base64 already."""
    head = (f"id: {id}\n" if id is not None else "") + (f"event: {event}\n" if event else "")
    pictures: list[bytes] = []

    def put_off(value: bytes) -> str:
        pictures.append(value)
        return MARK

    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), default=put_off)
    first, *rest = f"{head}data: {text}\n\n".encode().split(MARK.encode())
    return b"".join([first, *chain.from_iterable(zip(pictures, rest, strict=True))])


def frames_of(data: bytes) -> list[bytes]:
    """The frames of which this is made; JSON has no line ends in it."""
    return [part + b"\n\n" for part in data.split(b"\n\n") if part]


def comment(text: str) -> bytes:
    return f": {text}\n\n".encode()


def error_frame(error: ImagegenError, id: int | None = None) -> bytes:
    return frame(error.body(), event="error", id=id)


@lru_cache(maxsize=4)
def b64(data: bytes) -> bytes:
    """Once for all who follow a job: they ask for the same picture at nearly the same time."""
    return base64.b64encode(data)
