"""What the handlers share, each under its typed key."""

from __future__ import annotations

from aiohttp import web

from gguf_imagegen.api.metrics import Metrics
from gguf_imagegen.service import Service

SERVICE = web.AppKey("service", Service)
METRICS = web.AppKey("metrics", Metrics)
REQUEST_IDS = web.AppKey("request_ids", dict[tuple[str, str], str])
"""Ids of jobs by the caller and the `request_id` that it gave (Xinference)."""
JOB_MADE = web.RequestKey("job_made", bool)
"""There in a request that made a job or joined one, which has its own lines in the log."""
