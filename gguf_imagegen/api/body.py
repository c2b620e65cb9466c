"""Reading request bodies: JSON or multipart, bounded while they stream in and before they are parsed.

What a body holds beyond SMALL bytes is taken from a budget that all bodies share, until `let_go`.
"""

from __future__ import annotations

import asyncio
import codecs
import io
import json
import zlib
from typing import Any, cast

from aiohttp import BodyPartReader, MultipartReader, StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.jobs.budget import Budget, Share
from gguf_imagegen.planning import bounded_json
from gguf_imagegen.planning.form import from_form
from gguf_imagegen.vocabulary.errors import Cancelled, ContentTypeUnsupported, InvalidRequest, PayloadTooLarge

MAX_PARTS = 200
MAX_LINES = 20 * MAX_PARTS
"""Lines outside the content of a form's parts: boundaries and headers."""
MAX_TEXT_PART = 1 << 20
READ_TIMEOUT = 300.0
"""Seconds in which a body must have arrived whole."""
SMALL = 1 << 20
"""Bytes of a body that never wait."""
BESIDE_ONE = 32 << 20
"""Bytes of large bodies that have room beside one of the largest size."""
PATIENCE = 60.0
STEP = 1 << 18
QUICK = 1 << 14
"""Bytes that are parsed before a thread has started."""
MAX_RATIO = 1032
"""Deflate makes no byte into more than that."""
CHARSETS = (
    "utf-8",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "ascii",
    "iso8859-1",
    "iso8859-15",
    "cp1252",
)

BODIES = web.AppKey("bodies", Budget)
_SHARE = web.RequestKey("body_share", Share)
NOTES = web.RequestKey("body_notes", list[str])
"""What was forgiven in the request's body."""


def budget(largest: int) -> Budget:
    return Budget(largest + BESIDE_ONE, PATIENCE, "large bodies")


@web.middleware
async def body_shares(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A share of BODIES for each request, given back at its end at the latest."""
    with request.app[BODIES].share() as share:
        request[_SHARE] = share
        return await handler(request)


def let_go(request: web.Request) -> None:
    """The request's body is not held any more: others may take its room."""
    request[_SHARE].release()


async def read_body(request: web.Request) -> dict[str, Any]:
    """The request's fields, from JSON or a form; uploads are bytes."""
    limit = request.app[SERVICE].settings.max_body_bytes
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
    is_form = request.content_type == "multipart/form-data"
    _check_encoding(encoding, is_form)
    try:
        if is_form:
            return from_form(await asyncio.wait_for(_read_parts(request, limit), READ_TIMEOUT))
        body = await asyncio.wait_for(_read_whole(request, limit), READ_TIMEOUT)
    except asyncio.TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {READ_TIMEOUT:.0f} s") from None
    except web.RequestPayloadError:
        raise InvalidRequest("the body is malformed") from None
    except ConnectionError:
        raise Cancelled("the client left before its body had arrived") from None
    if encoding not in ("", "identity"):
        await _hold(request, min(limit, len(body) * MAX_RATIO))
        body = await asyncio.to_thread(_inflated, body, encoding, limit)
    request[NOTES] = notes = list[str]()
    if len(body) < QUICK:
        return parse_json(body, request.charset, notes)
    return await asyncio.to_thread(parse_json, body, request.charset, notes)


def parse_json(body: bytes, charset: str | None = None, notes: list[str] | None = None) -> dict[str, Any]:
    """The JSON object in these bytes, whatever the content type said (curl -d says it is a form).

    Adds to `notes` what was no JSON and was forgiven.

    CPU-bound with a large body: call it in a thread.
    """
    body = _as_utf8(body, charset)
    if not body[:SMALL].lstrip().startswith((b"{", b"//")):
        raise ContentTypeUnsupported(
            "the body must be a JSON object (Content-Type: application/json) or multipart/form-data"
        )
    try:
        data = bounded_json.loads(body, "the body", notes=notes)
    except UnicodeDecodeError as exc:
        raise InvalidRequest(_not_utf8(exc)) from None
    except (ValueError, RecursionError) as exc:
        where = f" at byte {exc.pos}" if isinstance(exc, json.JSONDecodeError) else ""
        raise InvalidRequest(f"the body is not valid JSON{where}") from None
    if not isinstance(data, dict):
        raise InvalidRequest("the body must be a JSON object")
    return data


# -- as it arrives ------------------------------------------------------------------------------------


async def _read_whole(request: web.Request, limit: int) -> bytes:
    data = io.BytesIO()
    async for chunk in request.content.iter_any():
        data.write(chunk)
        if data.tell() > limit:
            raise _too_large(limit)
        await _hold(request, data.tell())
    return data.getvalue()


async def _hold(request: web.Request, amount: int) -> None:
    """Wait until so many bytes of this request's may be in memory."""
    share = request[_SHARE]
    missing = amount - SMALL - share.held
    if missing > 0:
        await share.grow(max(missing, STEP))


class _Lines:
    """A form as its reader wants it, with a bound on the lines, each of which costs a turn of Python."""

    def __init__(self, content: StreamReader) -> None:
        self._lines = 0
        self._content = content
        self.read, self.at_eof, self.unread_data = content.read, content.at_eof, content.unread_data

    async def readline(self, *, max_line_length: int | None = None) -> bytes:
        self._lines += 1
        if self._lines > MAX_LINES:
            raise ValueError("too many lines")
        return await self._content.readline(max_line_length=max_line_length)


async def _read_parts(request: web.Request, limit: int) -> list[tuple[str, str | bytes]]:
    parts: list[tuple[str, str | bytes]] = []
    held = 0
    try:
        reader = MultipartReader(request.headers, cast(StreamReader, _Lines(request.content)))
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader) or not part.name:
                raise InvalidRequest("every part of the form needs a name")
            if len(parts) >= MAX_PARTS:
                raise InvalidRequest(f"the form has more than {MAX_PARTS} parts")
            data = await _read_part(request, part, held, limit)
            held += len(data)
            if not (data or part.filename):
                continue  # a browser's input of a form, in which nobody chose a file
            parts.append((part.name, data if _is_file(part) else _text(part, data)))
    except ConnectionError:
        raise
    except (ValueError, AssertionError, RuntimeError, HttpProcessingError) as exc:
        raise InvalidRequest("the multipart body is malformed") from exc
    return parts


async def _read_part(request: web.Request, part: BodyPartReader, held: int, limit: int) -> bytes:
    left = limit - held
    most = left if _is_file(part) else min(left, MAX_TEXT_PART)
    data = io.BytesIO()
    while chunk := await part.read_chunk(1 << 16):
        data.write(chunk)
        if data.tell() > most:
            raise _too_large(limit if most == left else MAX_TEXT_PART)
        await _hold(request, held + data.tell())
    return data.getvalue()


def _is_file(part: BodyPartReader) -> bool:
    return part.filename is not None or (part.headers.get("Content-Type", "")).startswith("image/")


# -- what it is written in ----------------------------------------------------------------------------


def _check_encoding(encoding: str, is_form: bool) -> None:
    if encoding in ("", "identity") or (encoding in ("gzip", "deflate") and not is_form):
        return
    taken = "send the form as it is" if is_form else "gzip and deflate are taken"
    raise ContentTypeUnsupported(f"Content-Encoding: {encoding[:40]!r} is not known here; {taken}")


def _inflated(body: bytes, encoding: str, limit: int) -> bytes:
    """The body of a gzip or deflate one; it may not become larger than the limit."""
    bare = encoding == "deflate" and body[:1] and body[0] & 0xF != 8  # some leave zlib's own header out
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS if bare else zlib.MAX_WBITS + 32)
    data = io.BytesIO()
    try:
        while not unpacker.eof:
            piece = unpacker.decompress(body, STEP)
            body = unpacker.unconsumed_tail
            data.write(piece)
            if data.tell() > limit:
                raise _too_large(limit)
            if not piece and not body:
                raise InvalidRequest(f"the body ends before its {encoding} does")
    except zlib.error:
        raise InvalidRequest(f"Content-Encoding says {encoding}, and the body is not that") from None
    return data.getvalue()


def _as_utf8(body: bytes, charset: str | None) -> bytes:
    """The text in UTF-8: as declared, or as its byte order mark says."""
    name = _charset(charset) if charset else ""
    if body.startswith(codecs.BOM_UTF8) and name in ("", "utf-8"):
        return body.removeprefix(codecs.BOM_UTF8)
    if not name and body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        name = "utf-16"
    if name in ("", "utf-8", "ascii"):
        return body
    out = io.BytesIO()
    decoder = codecs.getincrementaldecoder(name)()
    try:
        for at in range(0, len(body), STEP):
            text = decoder.decode(body[at : at + STEP], final=at + STEP >= len(body))
            out.write(text.removeprefix("\ufeff" if at == 0 else "").encode())
    except UnicodeError:
        raise InvalidRequest(f"the body is not {name} text, as its Content-Type says") from None
    return out.getvalue()


def _charset(name: str) -> str:
    try:
        known = codecs.lookup(name).name
    except (LookupError, ValueError):
        known = ""
    if known not in CHARSETS:
        raise ContentTypeUnsupported(f"charset {name[:40]!r} is not known here; send UTF-8")
    return known


def _text(part: BodyPartReader, data: bytes) -> str:
    name = part.name or ""
    try:
        return data.decode(_charset(part.get_charset("utf-8") or "utf-8"))
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name}: is not UTF-8 text", param=name) from None


def _not_utf8(exc: UnicodeDecodeError) -> str:
    return f"the body is not UTF-8 text (byte {exc.start}); send UTF-8, or name its charset in Content-Type"


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {limit / 1048576:.1f} MiB, the limit of this server")
