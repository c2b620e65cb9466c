"""JSON answers that cost less: a tag that saves an answer its client has, and gzip for the long ones.

Only answers with neither secrets nor pictures are compressed: the length of a compressed one tells about what
is in it (BREACH), and names of pictures are secrets. Streams are neither tagged nor compressed.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Awaitable, Callable
from functools import wraps

from aiohttp import ETag, hdrs, web
from aiohttp.typedefs import Handler

LEAST = 1400
"""Bytes of an answer that is compressed; a shorter one fits into one packet as it is."""
MOST = 1 << 20
"""Bytes of an answer that is tagged; larger ones hold pictures."""
LEVEL = 6
_OPEN = web.RequestKey("open", bool)


def compressed(handler: Callable[[web.Request], Awaitable[web.Response]]) -> Handler:
    """Say that a handler's answers hold no secret, not even the name of a picture, and no picture."""

    @wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        request[_OPEN] = True
        return await handler(request)

    return answer


@web.middleware
async def packed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tag JSON that is read, unless its handler has; 304 to who has it; compress what may be."""
    answer = await handler(request)
    if not isinstance(answer, web.Response) or not _is_read(request, answer):
        return answer
    body = answer.body
    if not isinstance(body, bytes) or len(body) > MOST:
        return answer
    answer.etag = tag = answer.etag or tag_of(body)
    if request.get(_OPEN):
        answer.headers.setdefault(hdrs.CACHE_CONTROL, "private, no-cache")
        answer.headers[hdrs.VARY] = hdrs.ACCEPT_ENCODING
    if any(each.value in (tag.value, "*") for each in request.if_none_match or ()):
        return _not_modified(answer)
    if request.get(_OPEN) and len(body) >= LEAST and _takes_gzip(request):
        answer.body = await asyncio.to_thread(gzip.compress, body, LEVEL, mtime=0)
        answer.headers[hdrs.CONTENT_ENCODING] = "gzip"
    return answer


def tag_of(body: bytes) -> ETag:
    """A weak one: the compressed answer has it, too."""
    return ETag(hashlib.blake2b(body, digest_size=12).hexdigest(), is_weak=True)


def _is_read(request: web.Request, answer: web.Response) -> bool:
    reads = request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
    return reads and answer.status == 200 and answer.content_type == "application/json"


def _not_modified(answer: web.Response) -> web.Response:
    kept = (hdrs.ETAG, hdrs.CACHE_CONTROL, hdrs.VARY)
    return web.Response(
        status=304, headers={name: answer.headers[name] for name in kept if name in answer.headers}
    )


def _takes_gzip(request: web.Request) -> bool:
    """By Accept-Encoding; `gzip;q=0` is a no."""
    for each in request.headers.get(hdrs.ACCEPT_ENCODING, "").lower().split(","):
        name, _, weight = each.replace(" ", "").partition(";")
        if name == "gzip":
            return weight not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
