"""A server below a prefix (--root-path), whether or not a proxy cuts that off before it gets here."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage


def serve_below(server: web.Server, root_path: str) -> None:
    """Cut the prefix off every request before it is routed; `request.raw_path` keeps it.

    Done here, so that routes, keys and dialects know one spelling of each path.
    """
    make = server.request_factory

    def at_root(message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
        return make(_without(root_path, message), *rest)

    if root_path:
        server.request_factory = at_root


def _without(root_path: str, message: RawRequestMessage) -> RawRequestMessage:
    path = message.url.raw_path
    if path != root_path and not path.startswith(f"{root_path}/"):
        return message
    rest = path.removeprefix(root_path) or "/"
    return message._replace(url=message.url.with_path(rest, encoded=True, keep_query=True))
