"""Health, liveness and metrics."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from aiohttp import web

from gguf_imagegen import __version__
from gguf_imagegen.api import answers
from gguf_imagegen.api.callers import admins_only, caller_of
from gguf_imagegen.api.cluster import state_of
from gguf_imagegen.api.keys import METRICS, SERVICE
from gguf_imagegen.api.openapi.contract import ADMIN, endpoint
from gguf_imagegen.api.reply import reply
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.machine.levels import in_use
from gguf_imagegen.pool.base_lane import BaseLane


@endpoint(answers.Alive)
async def livez(request: web.Request) -> web.Response:
    """GET /livez: the process answers."""
    return reply(answers.Alive, {"status": "alive"})


@endpoint(answers.Health, also={503: answers.Health})
async def health(request: web.Request) -> web.Response:
    """GET /health: 200 when a request would be worked on, 503 while not."""
    scheduler, pool = request.app[SERVICE].scheduler, request.app[SERVICE].pool
    loaded, loading, running, error = pool.entries, pool.loading, scheduler.running, pool.error
    status = "ok"
    if scheduler.draining:
        status = "shutting_down"
    elif not pool.lanes:
        status = "no_lanes"
    elif loading is not None and not running:
        status = "loading"
    elif pool.pause and not pool.ready(None):
        status = "paused"
    elif error is not None:
        status = "error"
    build = in_use()
    body = {
        "status": status,
        "ready": status == "ok",
        "model": request.app[SERVICE].served_name,
        "loaded": bool(loaded),
        "models": [entry.name for entry in loaded],
        "loading": {"done": loading.done, "total": loading.total} if loading else None,
        "backend": pool.backend,
        "kernels": pool.kernels,
        "build": asdict(build) if build else None,
        "error": error.body()["error"] if error else None,
        "pause": math.ceil(pool.pause) or None,
        "queue": scheduler.waiting,
        "running": running[0].id if running else None,
        "lanes": [_lane(scheduler, lane) for lane in pool.lanes],
        "cluster": state_of(request.app[SERVICE].cluster),
        "version": __version__,
    }
    return reply(answers.Health, body, status=200 if status == "ok" else 503)


def _lane(scheduler: Scheduler, lane: BaseLane) -> dict[str, Any]:
    """`model` is what it loads or has used last."""
    job = scheduler.job_on(lane)
    return {
        "name": lane.name,
        "status": scheduler.status_of(lane),
        "model": lane.being_loaded or next((entry.name for entry in lane.entries), None),
        "backend": lane.backend,
        "kernels": lane.kernels,
        "pause": math.ceil(lane.pause) or None,
        "job": job.id if job else None,
    }


@endpoint(answers.Me)
async def me(request: web.Request) -> web.Response:
    """GET /v1/me: the caller, whether it is an admin, and its bounds."""
    caller = caller_of(request)
    named = {"object": "caller", "name": caller.name, "admin": caller.admin}
    return reply(answers.Me, {**named, "bounds": caller.bounds.model_dump()})


@endpoint(None, errors=ADMIN, media=("text/plain",))
@admins_only
async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus text."""
    return web.Response(
        body=request.app[METRICS].text(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )
