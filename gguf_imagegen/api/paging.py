"""Lists in pages: `limit` says how much of one, `before` where it goes on, `has_more` that it does."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import dropwhile, islice
from typing import TypeVar

from aiohttp import web

from gguf_imagegen.api.openapi.contract import Param
from gguf_imagegen.vocabulary.errors import InvalidRequest

Item = TypeVar("Item")

MOST = 200
LIMIT = Param("limit", "query", {"type": "integer", "minimum": 1, "maximum": MOST}, "items in one answer")


def limit_of(request: web.Request, usual: int) -> int:
    """How many items are wanted at once; at most MOST."""
    limit = request.query.get("limit", str(usual))
    if not limit.isdecimal() or len(limit) > 4 or not 1 <= int(limit) <= MOST:
        raise InvalidRequest(f"limit: must be a number from 1 to {MOST}", param="limit")
    return int(limit)


def page_of(items: Iterable[Item], limit: int, last: Item | None) -> tuple[list[Item], bool]:
    """So many of the items, from after `last` where it is given, and whether there are more."""
    if last is not None:
        items = islice(dropwhile(lambda each: each is not last, items), 1, None)
    page = list(islice(items, limit + 1))
    return page[:limit], len(page) > limit
