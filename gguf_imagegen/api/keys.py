"""What the handlers share, each under its typed key."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from gguf_imagegen.api.metrics import Metrics
from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.settings import Settings


@dataclass
class DefaultModel:
    """The model of requests that name none; AUTOMATIC1111's options change it."""

    id: str


SETTINGS = web.AppKey("settings", Settings)
CATALOG = web.AppKey("catalog", Catalog)
SCHEDULER = web.AppKey("scheduler", Scheduler)
METRICS = web.AppKey("metrics", Metrics)
DEFAULT_MODEL = web.AppKey("default_model", DefaultModel)
REQUEST_IDS = web.AppKey("request_ids", dict[str, str])
"""Ids of jobs by the `request_id` that the client gave (Xinference)."""
