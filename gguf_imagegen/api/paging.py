"""Lists in pages: `limit` says how much of one, `before` where it goes on, `has_more` that it does."""

from __future__ import annotations

from aiohttp import web

from gguf_imagegen.api.openapi.contract import Param
from gguf_imagegen.vocabulary.errors import InvalidRequest

MOST = 200
LIMIT = Param("limit", "query", {"type": "integer", "minimum": 1, "maximum": MOST}, "items in one answer")


def limit_of(request: web.Request, usual: int) -> int:
    """How many items are wanted at once; at most MOST."""
    limit = request.query.get("limit", str(usual))
    if not limit.isdecimal() or len(limit) > 4 or not 1 <= int(limit) <= MOST:
        raise InvalidRequest(f"limit: must be a number from 1 to {MOST}", param="limit")
    return int(limit)
