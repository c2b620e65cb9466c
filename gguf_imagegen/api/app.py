"""The application: which dialects it speaks, and the life of what the handlers share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

from aiohttp import web

from gguf_imagegen.api import (
    addons,
    body,
    cluster,
    conversions,
    dialect,
    gallery,
    jobs,
    middleware,
    models,
    packing,
    pull,
    server_log,
    sets,
    submit,
    system,
    web_page,
)
from gguf_imagegen.api.callers import CALLERS, Callers
from gguf_imagegen.api.dialect import Dialect, Dialects
from gguf_imagegen.api.dialects import azure, chat, gpustack, llamabox, openai, ovms, responses, xinference
from gguf_imagegen.api.dialects.a1111 import routes as a1111
from gguf_imagegen.api.dialects.mcp import routes as mcp
from gguf_imagegen.api.dialects.sdcpp import routes as sdcpp
from gguf_imagegen.api.idempotency import ATTEMPTS, Attempts
from gguf_imagegen.api.job_log import JobLog
from gguf_imagegen.api.keys import METRICS, REQUEST_IDS, SERVICE
from gguf_imagegen.api.metrics import Metrics
from gguf_imagegen.api.openapi import document
from gguf_imagegen.api.openapi import routes as openapi_routes
from gguf_imagegen.api.streams import all_jobs, writing
from gguf_imagegen.api.streams.send import TASKS
from gguf_imagegen.api.traces import TRACES, traces_of
from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.store import Store
from gguf_imagegen.engines.backend import Backend
from gguf_imagegen.jobs.state import State
from gguf_imagegen.machine.logs import Tail
from gguf_imagegen.service import Service
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Engine
from gguf_imagegen.vocabulary.waits import USUAL, Waits

OURS = (
    Dialect(
        "images",
        "Images",
        [
            web.get("/v1/images", gallery.list_images),
            web.post("/v1/images/sets", sets.make_set),
            web.get("/v1/images/sets", sets.list_sets),
            web.get("/v1/images/sets/{id}", sets.get_set),
            web.get("/v1/images/sets/{id}/events", sets.set_events),
            web.get("/v1/images/sets/{id}/sheet", sets.sheet),
            web.delete("/v1/images/sets/{id}", sets.cancel_set),
            web.delete("/v1/images/sets/{id}/items/{index}", sets.cancel_item),
            web.get("/v1/images/files/{name}", gallery.get_image),
            web.delete("/v1/images/files/{name}", gallery.delete_image),
            web.post("/v1/images/info", gallery.image_info),
            web.get("/v1/addons", addons.list_addons),
        ],
    ),
    Dialect(
        "jobs",
        "Jobs",
        [
            web.get("/v1/jobs", jobs.list_jobs),
            web.get("/v1/jobs/{id}", jobs.get_job),
            web.get("/v1/jobs/{id}/events", jobs.job_events),
            web.post("/v1/jobs/{id}", jobs.change_job),
            web.delete("/v1/jobs/{id}", jobs.cancel_job),
            web.get("/v1/events", all_jobs.events),
        ],
    ),
    Dialect(
        "models",
        "Models",
        [
            web.get("/v1/models", models.list_models),
            web.get("/v1/models/{id}", models.get_model),
            web.post("/v1/models/yield", models.yield_memory),
            web.post("/v1/models/pull", pull.pull_model),
            web.get("/v1/models/pull/{id}", pull.get_pull),
            web.delete("/v1/models/pull/{id}", pull.cancel_pull),
            web.post("/v1/models/convert", conversions.convert_model),
            web.get("/v1/models/convert/{id}", conversions.get_conversion),
            web.delete("/v1/models/convert/{id}", conversions.cancel_conversion),
            web.get("/v1/models/{id}/progress", models.load_progress),
            web.get("/v1/models/{org}/{name}", models.get_model),
            web.delete("/v1/models/{id}", pull.remove_model),
            web.post("/v1/models/{id}/load", models.load_model),
            web.post("/v1/models/{id}/unload", models.unload_model),
        ],
    ),
    Dialect(
        "server",
        "Server",
        [
            web.get("/", web_page.page),
            web.get("/web/{name}", web_page.asset),
            web.get("/v1/me", system.me),
            web.get("/health", system.health),
            web.get("/livez", system.livez),
            web.get("/metrics", system.metrics),
            web.post("/v1/cluster/nodes/{name}/drain", cluster.drain),
            web.get("/v1/logs", server_log.log_lines),
            web.get("/v1/logs/events", server_log.log_events),
            web.get("/openapi.json", openapi_routes.openapi_json),
            web.get("/docs", openapi_routes.docs),
        ],
    ),
)
"""Our own routes, which are always there."""

DIALECTS = (
    openai.DIALECT,
    azure.DIALECT,
    llamabox.DIALECT,
    a1111.DIALECT,
    sdcpp.DIALECT,
    chat.DIALECT,
    responses.DIALECT,
    ovms.DIALECT,
    gpustack.DIALECT,
    xinference.DIALECT,
    mcp.DIALECT,
)
"""What --dialects chooses from, beside the dialects of installed packages."""

ROUTES = [route for dialect in (*OURS, *DIALECTS) for route in dialect.routes]


def make_app(
    settings: Settings,
    catalog: Catalog,
    default_model: str,
    backend: Backend,
    kept: State | None = None,
    *,
    make_reader: Callable[[], Engine] | None = None,
    waits: Waits = USUAL,
) -> web.Application:
    """The whole server, whose pictures this backend computes; `make_reader` is as `Service` takes it.

    Without `kept`, the state folder, all is forgotten at the end. Raises InvalidRequest for dialects that
    there are not.
    """
    dialects = Dialects([*OURS, *dialect.chosen(settings.dialects, DIALECTS)])
    app = web.Application(
        middlewares=[
            writing.written_in_time,
            middleware.errors_to_answers,
            packing.packed,
            middleware.guard,
            middleware.after_the_past,
            body.body_shares,
        ],
        client_max_size=settings.max_body_bytes,
    )
    metrics, job_log = Metrics(), JobLog(prompts=settings.log_prompts)
    traces = traces_of(settings)
    service = Service(
        settings,
        catalog,
        default_model,
        backend,
        kept=kept,
        observers=(metrics.job_event, job_log.job_event, *([traces.job_event] if traces else [])),
        make_reader=make_reader,
        waits=waits,
    )
    service.returned = partial(submit.take_back, app)
    service.pool.ended = metrics.worker_ended
    metrics.watch(service.scheduler, service.cluster)
    if traces is not None:
        app[TRACES] = traces
        app.middlewares.append(traces.middleware)
        app.cleanup_ctx.append(traces.run)
    app[SERVICE] = service
    app[dialect.DIALECTS] = dialects
    app[CALLERS] = Callers(settings)
    app[body.BODIES] = body.budget(settings.max_body_bytes)
    app[METRICS] = metrics
    app[REQUEST_IDS] = {}
    app[TASKS] = set()
    app[all_jobs.FRAMES] = all_jobs.Frames(service.scheduler, waits.places_again)
    app[openapi_routes.DESCRIPTION] = openapi_routes.Description(
        partial(document.document, dialects.every, settings, service.abilities)
    )
    app[ATTEMPTS] = Attempts()
    app[web_page.ASSETS] = web_page.load_assets()
    app[server_log.TAIL] = Tail()
    app[pull.PULLS] = pull.Pulls(Store(settings.models_dir), service.pool.forget_failure)
    app.on_response_prepare.append(middleware.add_headers)
    app[conversions.CONVERSIONS] = conversions.Conversions(service)
    app.on_shutdown.extend((pull.end_pulls, conversions.end_conversions))
    app.cleanup_ctx.append(server_log.lines_are_kept)
    app.cleanup_ctx.append(conversions.conversions_run)
    app.cleanup_ctx.append(_service_runs)
    app.add_routes(dialects.routes)
    for each in dialects.every:
        if each.prepare is not None:
            each.prepare(app)
    app.add_routes(dialects.spellings)
    return app


async def _service_runs(app: web.Application) -> AsyncIterator[None]:
    service = app[SERVICE]
    service.scheduler.want(service.default)
    async with service.running():
        yield
