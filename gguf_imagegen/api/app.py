"""The application: the one route table, and the life of what the handlers share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial

from aiohttp import web

from gguf_imagegen.api import (
    a1111_routes,
    body,
    chat,
    compat,
    describe,
    docs_page,
    gallery,
    jobs,
    middleware,
    models,
    openai,
    openapi,
    pixels,
    pull,
    sdcpp_server,
    system,
    watch,
    web_page,
    writing,
)
from gguf_imagegen.api.job_log import JobLog
from gguf_imagegen.api.keys import (
    CATALOG,
    DEFAULT_MODEL,
    METRICS,
    REQUEST_IDS,
    SCHEDULER,
    SETTINGS,
    DefaultModel,
)
from gguf_imagegen.api.metrics import Metrics
from gguf_imagegen.api.retries import ATTEMPTS, Attempts
from gguf_imagegen.api.stream import TASKS
from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.store import Store
from gguf_imagegen.engine.cores import usable_cores
from gguf_imagegen.engine.process import EngineProcess
from gguf_imagegen.engine.protocol import Engine
from gguf_imagegen.jobs.job import Job, JobEvent
from gguf_imagegen.jobs.resident import Resident
from gguf_imagegen.jobs.results import ResultStore
from gguf_imagegen.jobs.scheduler import Observer, Scheduler
from gguf_imagegen.settings import Settings

CANCEL_AGAIN = 5.0
"""Seconds after which a cancellation was lost: `asyncio.wait_for` may swallow one before Python 3.12."""
SWEEP = 30.0
"""Seconds between two looks for what has expired."""

ROUTES = [
    web.get("/", web_page.page),
    web.get("/web/{name}", web_page.asset),
    web.get("/v1/images", gallery.list_images),
    web.delete("/v1/images/files/{name}", gallery.delete_image),
    web.get("/v1/events", watch.events),
    web.post("/v1/images/generations", openai.generations),
    web.post("/v1/images/edits", openai.edits),
    web.post("/v1/images/variations", openai.variations),
    web.get("/v1/images/files/{name}", openai.files),
    web.get("/v1/models", models.list_models),
    web.get("/v1/models/{id}", models.get_model),
    web.post("/v1/models/pull", pull.pull_model),
    web.get("/v1/models/pull/{id}", pull.get_pull),
    web.delete("/v1/models/pull/{id}", pull.cancel_pull),
    web.delete("/v1/models/{id}", pull.remove_model),
    web.post("/v1/models/{id}/load", models.load_model),
    web.post("/v1/models/{id}/unload", models.unload_model),
    web.get("/v1/jobs", jobs.list_jobs),
    web.get("/v1/jobs/{id}", jobs.get_job),
    web.get("/v1/jobs/{id}/events", jobs.job_events),
    web.delete("/v1/jobs/{id}", jobs.cancel_job),
    web.get("/health", system.health),
    web.get("/livez", system.livez),
    web.get("/metrics", system.metrics),
    web.get("/openapi.json", describe.openapi_json),
    web.get("/docs", describe.docs),
    # sd.cpp's server
    web.get("/sdcpp/v1/capabilities", sdcpp_server.capabilities),
    web.post("/sdcpp/v1/img_gen", sdcpp_server.img_gen),
    web.post("/sdcpp/v1/vid_gen", sdcpp_server.vid_gen),
    web.get("/sdcpp/v1/jobs/{id}", sdcpp_server.get_job),
    web.post("/sdcpp/v1/jobs/{id}/cancel", sdcpp_server.cancel_job),
    # vLLM-Omni
    web.post("/v1/chat/completions", chat.completions),
    # OpenVINO Model Server
    web.post("/v3/images/generations", openai.generations),
    web.post("/v3/images/edits", openai.edits),
    web.post("/v3/images/variations", openai.variations),
    web.get("/v3/models", models.list_models),
    web.get("/v3/models/{id}", models.get_model),
    web.get("/v1/config", compat.config),
    web.get("/v3/config", compat.config),
    # GPUStack
    web.post("/v1-openai/images/generations", openai.generations),
    web.post("/v1-openai/images/edits", openai.edits),
    web.post("/v1-openai/image/generate", openai.generations),
    web.post("/v1-openai/image/edit", openai.edits),
    web.get("/v1-openai/models", models.list_models),
    web.get("/v1-openai/models/{id}", models.get_model),
    # Xinference
    web.post("/v1/images/inpainting", compat.inpainting),
    web.post("/v1/images/ocr", compat.ocr),
    web.get("/v1/requests/{request_id}/progress", compat.progress),
    web.post("/v1/models/{id}/requests/{request_id}/abort", compat.abort),
    # AUTOMATIC1111
    *a1111_routes.ROUTES,
]


def make_app(
    settings: Settings,
    catalog: Catalog,
    default_model: str,
    make_engine: Callable[[], Engine] | None = None,
) -> web.Application:
    """The whole server; `make_engine` gives an engine that is not started yet."""
    app = web.Application(
        middlewares=[
            writing.written_in_time,
            middleware.errors_to_answers,
            middleware.guard,
            body.body_shares,
        ],
        client_max_size=settings.max_body_bytes,
    )
    metrics = Metrics()
    resident = Resident(
        catalog,
        settings,
        make_engine or (lambda: EngineProcess(stall_timeout=settings.load_timeout)),
        settings.threads or usable_cores(),
    )
    resident.ended = metrics.worker_ended
    results = ResultStore(settings.output_dir, settings.job_ttl)
    job_log = JobLog(prompts=settings.log_prompts)
    scheduler = Scheduler(settings, resident, results, _each(metrics.job_event, job_log.job_event))
    metrics.watch(scheduler)
    app[SETTINGS] = settings
    app[body.BODIES] = body.budget(settings.max_body_bytes)
    app[pixels.PIXELS] = pixels.Pixels()
    app[CATALOG] = catalog
    app[DEFAULT_MODEL] = DefaultModel(default_model)
    app[METRICS] = metrics
    app[SCHEDULER] = scheduler
    app[REQUEST_IDS] = {}
    app[TASKS] = set()
    app[watch.FRAMES] = watch.Frames(scheduler)
    app[describe.DESCRIPTION] = describe.Description(
        partial(openapi.document, ROUTES, settings), docs_page.render, docs_page.STYLE
    )
    app[ATTEMPTS] = Attempts()
    app[web_page.ASSETS] = web_page.load_assets()
    app[sdcpp_server.SUBMITTED] = deque(maxlen=sdcpp_server.MAX_SUBMITTED)
    app[pull.PULLS] = pull.Pulls(Store(settings.models_dir), resident.forget_failure)
    app.on_response_prepare.append(middleware.add_headers)
    app.on_shutdown.append(pull.end_pulls)
    app.cleanup_ctx.append(_scheduler_runs)
    app.add_routes(ROUTES)
    return app


def _each(*observers: Observer) -> Observer:
    def tell(job: Job, event: JobEvent) -> None:
        for observer in observers:
            observer(job, event)

    return tell


async def _scheduler_runs(app: web.Application) -> AsyncIterator[None]:
    scheduler = app[SCHEDULER]
    scheduler.want(app[CATALOG].get(app[DEFAULT_MODEL].id))
    tasks = [asyncio.create_task(scheduler.run()), asyncio.create_task(_sweep(scheduler))]
    yield
    if not scheduler.draining:
        await scheduler.drain(0)
    while not all(task.done() for task in tasks):
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=CANCEL_AGAIN)
    scheduler.results.close()


async def _sweep(scheduler: Scheduler) -> None:
    while True:
        await asyncio.sleep(SWEEP)
        scheduler.sweep()
