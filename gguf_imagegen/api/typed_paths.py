"""Paths as people type them: the base address twice or without its `/v1`, a slash at the end.

They are served, not redirected: few clients follow a redirect of a POST.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from aiohttp import web

BASES = ("/v1", "/v3", "/v1-openai")
"""What clients have as the base address of an API like OpenAI's."""


def respelled(routes: Sequence[web.RouteDef]) -> list[tuple[web.RouteDef, str]]:
    """The same routes by other spellings of their paths, each with the path that it spells."""
    known = {(route.method, route.path) for route in routes}
    found: dict[tuple[str, str], tuple[web.RouteDef, str]] = {}
    for route in routes:
        for path in _spellings(route.path):
            if (route.method, path) not in known:
                spelled = web.RouteDef(route.method, path, route.handler, route.kwargs)
                found.setdefault((route.method, path), (spelled, route.path))
    return list(found.values())


def _spellings(path: str) -> list[str]:
    if path == "/" or path.startswith("/web/"):
        return []
    paths = [path]
    for base in BASES:
        if path.startswith(f"{base}/"):
            paths.append(base + path)
    if path.startswith("/v1/"):
        paths.append(path.removeprefix("/v1"))
    return [*paths[1:], *(f"{each}/" for each in paths)]


def nearest(method: str, path: str, routes: Sequence[web.RouteDef]) -> str | None:
    """The path of the route that was meant, if any is near."""
    paths = [route.path for route in routes if route.method == method]
    ending = [each for each in paths if path.endswith(each)]
    return max(ending, key=len) if ending else next(iter(get_close_matches(path[:200], paths, 1, 0.75)), None)
