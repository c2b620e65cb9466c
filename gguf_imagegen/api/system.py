"""Health, liveness and metrics."""

from __future__ import annotations

import math

from aiohttp import web

from gguf_imagegen import __version__
from gguf_imagegen.api.keys import METRICS, SERVICE


async def livez(request: web.Request) -> web.Response:
    """GET /livez: the process answers."""
    return web.json_response({"status": "alive"})


async def health(request: web.Request) -> web.Response:
    """GET /health: 200 when a request would be worked on, 503 while not."""
    scheduler = request.app[SERVICE].scheduler
    lane = scheduler.lane
    loaded = lane.entries
    status = "ok"
    if scheduler.draining:
        status = "shutting_down"
    elif lane.loading is not None and scheduler.running is None:
        status = "loading"
    elif lane.pause and not lane.ready(None):
        status = "paused"
    elif lane.error is not None:
        status = "error"
    body = {
        "status": status,
        "ready": status == "ok",
        "model": loaded[0].name if loaded else request.app[SERVICE].default_model,
        "loaded": bool(loaded),
        "models": [entry.name for entry in loaded],
        "loading": {"done": lane.loading.done, "total": lane.loading.total} if lane.loading else None,
        "backend": lane.backend,
        "error": lane.error.body()["error"] if lane.error else None,
        "pause": math.ceil(lane.pause) or None,
        "queue": scheduler.waiting,
        "running": scheduler.running.id if scheduler.running else None,
        "version": __version__,
    }
    return web.json_response(body, status=200 if status == "ok" else 503)


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus text."""
    return web.Response(
        body=request.app[METRICS].text(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )
