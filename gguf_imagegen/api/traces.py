"""OpenTelemetry, in an extra: one trace a job, from the request that asked for it to its last picture.

Nothing of it is imported, and nothing watches, unless `--otlp-endpoint` says where traces go. The rest are
OpenTelemetry's own variables: `OTEL_SERVICE_NAME`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`, ….
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Handler

from gguf_imagegen.api.job_spans import spans_of
from gguf_imagegen.jobs.job import Ended, Job, JobEvent
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import ImagegenError, NotInstalled

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SERVICE_NAME = "gguf-imagegen"
PATH = "/v1/traces"
CLOSING = 5.0
"""Seconds in which the last spans must be sent when the server ends."""


class Door:
    """A request; its span begins with the first job that it asks for, for most requests ask for none."""

    def __init__(self, request: web.Request) -> None:
        self.request = request
        self.began = time.time_ns()
        self.span: Span | None = None


DOOR: ContextVar[Door | None] = ContextVar("door", default=None)


def traces_of(settings: Settings) -> Traces | None:
    """None if nobody wants traces; raises NotInstalled without the extra."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME as NAMED
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise NotInstalled(
            "--otlp-endpoint needs libraries that are not installed: run pip install 'gguf-imagegen[otel]'"
        ) from None
    named = Resource({NAMED: SERVICE_NAME}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named, shutdown_on_exit=False)
    endpoint = settings.otlp_endpoint.rstrip("/").removesuffix(PATH) + PATH
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=CLOSING)))
    return Traces(provider, prompts=settings.trace_prompts)


class Traces:
    """Observes a scheduler and its requests; with `prompts` the spans of jobs have theirs."""

    def __init__(self, provider: TracerProvider, *, prompts: bool) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.provider = provider
        self._trace = trace
        self._tracer = provider.get_tracer(SERVICE_NAME)
        self._propagator = TraceContextTextMapPropagator()
        self._prompts = prompts
        self._asked: dict[str, Context | None] = {}

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The span of a request that makes a job ends with its answer, streams included."""
        door = Door(request)
        token = DOOR.set(door)
        status = 499  # the client left
        try:
            response = await handler(request)
            status = response.status
            return response
        except ImagegenError as exc:
            status = exc.status
            raise
        finally:
            DOOR.reset(token)
            if door.span is not None:
                door.span.set_attribute("http.response.status_code", status)
                door.span.end()

    def job_event(self, job: Job, event: JobEvent) -> None:
        """The place in a trace is known at a job's first event, the rest at its last one."""
        if len(job.events) == 1:
            self._asked[job.id] = self._context()
        if isinstance(event, Ended):
            self._tell(job, self._asked.pop(job.id, None))

    def _context(self) -> Context | None:
        door = DOOR.get()
        if door is None:  # taken over from an earlier run of the server
            return None
        if door.span is None:
            door.span = self._span_of(door)
        return self._trace.set_span_in_context(door.span)

    def _span_of(self, door: Door) -> Span:
        resource = door.request.match_info.route.resource
        route = resource.canonical if resource is not None else door.request.path
        return self._tracer.start_span(
            f"{door.request.method} {route}",
            context=self._propagator.extract(door.request.headers),
            kind=self._trace.SpanKind.SERVER,
            attributes={"http.request.method": door.request.method, "http.route": route},
            start_time=door.began,
        )

    def _tell(self, job: Job, context: Context | None) -> None:
        span = self._tracer.start_span(
            "job", context=context, attributes=self._attributes(job), start_time=_ns(job.times[0])
        )
        within = self._trace.set_span_in_context(span)
        for part in spans_of(job):
            child = self._tracer.start_span(
                part.name, context=within, attributes=dict(part.attributes), start_time=_ns(part.start)
            )
            for moment in part.moments:
                child.add_event(moment.name, dict(moment.attributes), timestamp=_ns(moment.at))
            child.end(_ns(part.end))
        if job.error is not None:
            span.set_attribute("error.type", job.error.code)
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(_ns(job.times[-1]))

    def _attributes(self, job: Job) -> dict[str, str | int]:
        plan = job.plan
        width, height = plan.delivered
        values: dict[str, str | int] = {
            "imagegen.job.id": job.id,
            "imagegen.operation": plan.operation,
            "imagegen.model": plan.entry.name,
            "imagegen.image.count": plan.n,
            "imagegen.image.size": f"{width}x{height}",
            "imagegen.job.status": job.status,
        }
        if plan.generate is not None:
            values["imagegen.steps"] = plan.generate.steps
            if self._prompts:
                values["imagegen.prompt"] = plan.generate.prompt
        return values

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Sends what is left when the server ends; bounded by the exporter's own time-out."""
        yield
        await asyncio.to_thread(self.provider.shutdown)


TRACES = web.AppKey("traces", Traces)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
