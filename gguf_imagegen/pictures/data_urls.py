"""Files inside text: data: URLs and bare base64."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from gguf_imagegen.vocabulary.errors import InvalidImage, InvalidRequest

MAX_PLAIN = 1 << 20
"""Characters of a data: URL that is not base64; to undo its escapes takes a second or two for a MiB."""
LONGEST_SCHEME = 40
_LONGEST_PADDING = 1_000
_STEP = 1 << 18
"""Characters that are decoded at once; the interpreter is held meanwhile."""
_PADDING = re.compile(r"(?i)(?:=|%3d|\s)+\Z")
_OTHER_SIGNS = (("-", "+"), ("_", "/"), ("%2B", "+"), ("%2b", "+"), ("%2F", "/"), ("%2f", "/"))
"""The URL-safe alphabet, and what URLs escape."""


def decode_data_url(text: str, param: str) -> bytes:
    """The bytes in a data: URL or in bare base64, standard or URL-safe, with or without padding."""
    text = text.strip()
    if text[:5].lower() == "data:":
        head, comma, payload = text.partition(",")
        if not comma:
            raise InvalidImage("a data: URL has a comma before its data, and this one has none", param=param)
        if head.lower().endswith(";base64"):
            return _from_base64(payload, param)
        if len(payload) > MAX_PLAIN:
            raise InvalidImage("a data: URL of this size must be base64", param=param)
        return unquote_to_bytes(payload)
    if re.match(r"(?i)[a-z][a-z0-9+.-]*:", text[:LONGEST_SCHEME]):
        raise InvalidRequest(
            "This server fetches no URLs; send the image's bytes, as a file or as base64.", param=param
        )
    return _from_base64(text, param)


def _from_base64(text: str, param: str) -> bytes:
    out = io.BytesIO()
    try:
        for packed in _quartets(text):
            out.write(base64.b64decode(packed, validate=True))
    except ValueError as exc:
        raise InvalidImage(
            "the text is not base64; send the image as a file, as base64 or as a data: URL", param=param
        ) from exc
    return out.getvalue()


def _quartets(text: str) -> Iterator[str]:
    """The text in steps of whole quartets: plain base64, padded at the end alone."""
    tail = text[-_LONGEST_PADDING:]
    end = len(text) - len(tail) + len(_PADDING.sub("", tail))
    rest = ""
    for start in range(0, end, _STEP):
        rest += "".join(text[start : min(start + _STEP, end)].split())
        for written, meant in _OTHER_SIGNS:
            rest = rest.replace(written, meant)
        if "=" in rest:
            raise ValueError("padding in the middle")
        whole = (len(rest) - 2) // 4 * 4  # the last two may begin an escape
        yield rest[:whole]
        rest = rest[whole:]
    yield rest + "=" * (-len(rest) % 4)
