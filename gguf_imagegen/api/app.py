"""The application: the one route table, and the life of what the handlers share."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from aiohttp import web

from gguf_imagegen.api import body, gallery, jobs, middleware, models, pull, system, typed_paths, web_page
from gguf_imagegen.api.callers import CALLERS, Callers
from gguf_imagegen.api.dialects import azure, chat, openai, responses, xinference
from gguf_imagegen.api.dialects.a1111 import routes as a1111_routes
from gguf_imagegen.api.dialects.sdcpp import routes as sdcpp_routes
from gguf_imagegen.api.idempotency import ATTEMPTS, Attempts
from gguf_imagegen.api.job_log import JobLog
from gguf_imagegen.api.keys import METRICS, REQUEST_IDS, SERVICE
from gguf_imagegen.api.metrics import Metrics
from gguf_imagegen.api.openapi import docs_page, document
from gguf_imagegen.api.openapi import routes as openapi_routes
from gguf_imagegen.api.streams import all_jobs, writing
from gguf_imagegen.api.streams.send import TASKS
from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.store import Store
from gguf_imagegen.engines.backend import Backend
from gguf_imagegen.service import Service
from gguf_imagegen.settings import Settings

ROUTES = [
    web.get("/", web_page.page),
    web.get("/web/{name}", web_page.asset),
    web.get("/v1/images", gallery.list_images),
    web.delete("/v1/images/files/{name}", gallery.delete_image),
    web.get("/v1/events", all_jobs.events),
    web.get("/v1/me", system.me),
    web.post("/v1/images/generations", openai.generations),
    web.post("/v1/images/edits", openai.edits),
    web.post("/v1/images/variations", openai.variations),
    web.get("/v1/images/files/{name}", openai.files),
    web.get("/v1/models", models.list_models),
    web.get("/v1/models/{id}", models.get_model),
    web.post("/v1/models/pull", pull.pull_model),
    web.get("/v1/models/pull/{id}", pull.get_pull),
    web.delete("/v1/models/pull/{id}", pull.cancel_pull),
    web.get("/v1/models/{id}/progress", xinference.launch_progress),
    web.get("/v1/models/{org}/{name}", models.get_model),
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
    web.get("/openapi.json", openapi_routes.openapi_json),
    web.get("/docs", openapi_routes.docs),
    # sd.cpp's server
    web.get("/sdcpp/v1/capabilities", sdcpp_routes.capabilities),
    web.post("/sdcpp/v1/img_gen", sdcpp_routes.img_gen),
    web.post("/sdcpp/v1/vid_gen", sdcpp_routes.vid_gen),
    web.get("/sdcpp/v1/jobs/{id}", sdcpp_routes.get_job),
    web.post("/sdcpp/v1/jobs/{id}/cancel", sdcpp_routes.cancel_job),
    # vLLM-Omni
    web.post("/v1/chat/completions", chat.completions),
    web.post("/v1/responses", responses.create),
    # OpenVINO Model Server
    web.post("/v3/images/generations", openai.generations),
    web.post("/v3/images/edits", openai.edits),
    web.post("/v3/images/variations", openai.variations),
    web.get("/v3/models", models.list_models),
    web.get("/v3/models/{id}", models.get_model),
    web.get("/v3/models/{org}/{name}", models.get_model),
    web.get("/v1/config", xinference.config),
    web.get("/v3/config", xinference.config),
    # GPUStack
    web.post("/v1-openai/images/generations", openai.generations),
    web.post("/v1-openai/images/edits", openai.edits),
    web.post("/v1-openai/image/generate", openai.generations),
    web.post("/v1-openai/image/edit", openai.edits),
    web.get("/v1-openai/models", models.list_models),
    web.get("/v1-openai/models/{id}", models.get_model),
    web.get("/v1-openai/models/{org}/{name}", models.get_model),
    # Azure's OpenAI
    web.post("/openai/deployments/{model}/images/generations", azure.generations),
    web.post("/openai/deployments/{model}/images/edits", azure.edits),
    web.post("/openai/deployments/{model}/chat/completions", azure.completions),
    # Xinference
    web.post("/v1/models", xinference.launch),
    web.get("/v1/model_registrations/{type}", xinference.registrations),
    web.get("/v1/model_registrations/{type}/{name}", xinference.registration),
    web.post("/v1/images/inpainting", xinference.inpainting),
    web.post("/v1/images/ocr", xinference.ocr),
    web.get("/v1/requests/{request_id}/progress", xinference.progress),
    web.post("/v1/models/{id}/requests/{request_id}/abort", xinference.abort),
    # AUTOMATIC1111
    *a1111_routes.ROUTES,
]


def make_app(
    settings: Settings,
    catalog: Catalog,
    default_model: str,
    backend: Backend,
    state_dir: Path | None = None,
) -> web.Application:
    """The whole server, whose pictures this backend computes.

    Without a state folder, which must be this server's alone, all is forgotten at the end.
    """
    app = web.Application(
        middlewares=[
            writing.written_in_time,
            middleware.errors_to_answers,
            middleware.guard,
            body.body_shares,
        ],
        client_max_size=settings.max_body_bytes,
    )
    app[middleware.KNOWN] = ROUTES
    metrics, job_log = Metrics(), JobLog(prompts=settings.log_prompts)
    service = Service(
        settings,
        catalog,
        default_model,
        backend,
        state_dir=state_dir,
        observers=(metrics.job_event, job_log.job_event),
    )
    service.pool.ended = metrics.worker_ended
    metrics.watch(service.scheduler)
    app[SERVICE] = service
    app[CALLERS] = Callers(settings)
    app[body.BODIES] = body.budget(settings.max_body_bytes)
    app[METRICS] = metrics
    app[REQUEST_IDS] = {}
    app[TASKS] = set()
    app[all_jobs.FRAMES] = all_jobs.Frames(service.scheduler)
    app[openapi_routes.DESCRIPTION] = openapi_routes.Description(
        partial(document.document, ROUTES, settings, service.abilities), docs_page.render, docs_page.STYLE
    )
    app[ATTEMPTS] = Attempts()
    app[web_page.ASSETS] = web_page.load_assets()
    app[sdcpp_routes.SUBMITTED] = deque(maxlen=sdcpp_routes.MAX_SUBMITTED)
    app[pull.PULLS] = pull.Pulls(Store(settings.models_dir), service.pool.forget_failure)
    app.on_response_prepare.append(middleware.add_headers)
    app.on_shutdown.append(pull.end_pulls)
    app.cleanup_ctx.append(_service_runs)
    app.add_routes(ROUTES)
    app.add_routes(typed_paths.respelled(ROUTES))
    return app


async def _service_runs(app: web.Application) -> AsyncIterator[None]:
    service = app[SERVICE]
    service.scheduler.want(service.default)
    async with service.running():
        yield
