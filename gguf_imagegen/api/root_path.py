"""One spelling of each path: without the prefix that a server is below (--root-path), whether or not a proxy
cuts that off before it gets here, and without the slashes that a base address ending in one leads to.
"""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage


def serve_below(server: web.Server, root_path: str) -> None:
    """Give every request its plain path before it is routed; `request.raw_path` keeps what was sent.

    Done here, so that routes, keys and dialects know one spelling of each path.
    """
    make = server.request_factory

    def at_root(message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
        sent = message.url.raw_path
        path = _below(root_path, re.sub("/{2,}", "/", sent))
        if path != sent:
            message = message._replace(url=message.url.with_path(path, encoded=True, keep_query=True))
        return make(message, *rest)

    server.request_factory = at_root


def _below(root_path: str, path: str) -> str:
    inside = path == root_path or path.startswith(f"{root_path}/")
    return path.removeprefix(root_path) or "/" if inside else path
