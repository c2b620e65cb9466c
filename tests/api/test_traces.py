"""OpenTelemetry: one trace a job, sent to a collector; nothing of it is there unless somebody asks."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from gguf_imagegen.api.traces import TRACES
from gguf_imagegen.settings import Settings
from tests.api.client import GENERATIONS, SMALL
from tests.conftest import RunningApp
from tests.fake_engines import CrashesAtStep, QuickEngine

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
SECRET = "a very private apple"


@contextlib.asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[Any]]]:
    """An OTLP collector over HTTP: its address, and the spans that it got."""
    spans: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        sent = ExportTraceServiceRequest.FromString(await request.read())
        for group in sent.resource_spans:
            spans.extend((group.resource, span) for scope in group.scope_spans for span in scope.spans)
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", spans
    finally:
        await runner.cleanup()


def values(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


async def test_one_trace_a_job(running: RunningApp) -> None:
    """Request, job, wait, load and phases with their steps, in the caller's own trace; no prompt in it."""
    asked = {**SMALL, "prompt": SECRET, "steps": 3, "n": 2}
    async with (
        collector() as (address, sent),
        running(engine=QuickEngine, otlp_endpoint=address) as app,
    ):
        await app.post("/v1/models/tiny-random/unload")
        async with app.session.post(app.url + GENERATIONS, json=asked, headers=PARENT) as answer:
            assert answer.status == 200
            job = answer.headers["X-Job-Id"]
    spans = {span.name: span for _, span in sent}
    assert values(sent[0][0])["service.name"] == "gguf-imagegen"
    assert {span.trace_id.hex() for _, span in sent} == {TRACE}
    request, whole = spans["POST /v1/images/generations"], spans["job"]
    assert request.parent_span_id.hex() == "00f067aa0ba902b7"
    assert whole.parent_span_id == request.span_id
    parts = [span for _, span in sent if span.parent_span_id == whole.span_id]
    assert {span.name for span in parts} == {"queue", "start", "load", "conditioning", "sampling", "decoding"}
    assert [len(span.events) for span in parts if span.name == "sampling"] == [3, 3]
    assert values(spans["load"])["imagegen.backend"] == "FAKE"
    assert values(request)["http.response.status_code"] == 200
    assert values(whole)["imagegen.job.id"] == job
    assert request.start_time_unix_nano <= whole.start_time_unix_nano
    assert all(whole.start_time_unix_nano <= part.start_time_unix_nano for part in parts)
    assert all(part.end_time_unix_nano <= whole.end_time_unix_nano for part in parts)
    assert SECRET not in str(sent)


async def test_prompts_if_asked(running: RunningApp) -> None:
    """And a stream's request ends with its last frame, after the job."""
    asked = {**SMALL, "prompt": SECRET, "stream": True}
    async with (
        collector() as (address, sent),
        running(engine=QuickEngine, otlp_endpoint=address, trace_prompts=True) as app,
    ):
        await app.post(GENERATIONS, **SMALL)
        async with app.session.post(app.url + GENERATIONS, json=asked) as answer:
            await answer.read()
    spans = {span.name: span for _, span in sent}  # of the last request
    assert len({span.trace_id for _, span in sent}) == 2
    assert values(spans["job"])["imagegen.prompt"] == SECRET
    request = spans["POST /v1/images/generations"]
    assert request.parent_span_id == b""
    assert request.end_time_unix_nano >= spans["job"].end_time_unix_nano


async def test_failures_and_other_requests(running: RunningApp) -> None:
    """A failed job has its error's code; requests that make no job leave no trace. Read as the SDK has it."""
    exporter = InMemorySpanExporter()
    async with collector() as (address, _), running(engine=CrashesAtStep, otlp_endpoint=address) as app:
        app.app[TRACES].provider.add_span_processor(SimpleSpanProcessor(exporter))
        await app.get("/health")
        await app.post(GENERATIONS, **{**SMALL, "size": "none"})
        status, _ = await app.post(GENERATIONS, **{**SMALL, "steps": 3})
        assert status == 500
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans if span.parent is None] == ["POST /v1/images/generations"]
    (job,) = [span for span in spans if span.name == "job"]
    assert job.attributes is not None
    assert job.attributes["error.type"] == "worker_crashed"
    assert job.status.status_code is StatusCode.ERROR


def test_nothing_is_imported_unless_asked() -> None:
    """Neither by the server's modules nor by settings without an endpoint."""
    code = (
        "import sys; from gguf_imagegen.api import app, traces; from gguf_imagegen.settings import Settings;"
        "assert traces.traces_of(Settings()) is None;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "[]\n"
    assert Settings().otlp_endpoint is None
