"""deploy/gpustack: GPUStack starts the server with its command; its gateway and page read the streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from gguf_imagegen.commands.testmodel import write_test_model
from tests.api.client import GENERATIONS, SMALL, picture
from tests.conftest import App, RunningApp, ServerProcess
from tests.deploy.gpustack import Page, by_frames, by_lines, command
from tests.fake_engines import CrashesAtStep, QuickEngine, SlowEngine

SPEC = Path(__file__).parents[2] / "deploy" / "gpustack" / "spec.yaml"
TOP = {
    "backend_name", "description", "default_version", "health_check_path", "default_entrypoint",
    "default_run_command", "default_backend_param", "default_env", "parameter_format", "common_parameters",
    "version_configs",
}  # fmt: skip
VERSION = {"image_name", "entrypoint", "run_command", "custom_framework"}
FRAMEWORKS = {"cuda", "rocm", "cann", "dtk", "musa", "corex", "maca", "neuware", "hggc", "cpu"}


@pytest.fixture
def spec() -> Any:
    return yaml.safe_load(SPEC.read_text(encoding="utf-8"))


def test_the_spec_has_the_templates_fields(spec: dict[str, Any]) -> None:
    """Those of spec-template.yaml in gpustack/community-inference-backends; the default version exists."""
    assert spec.keys() <= TOP
    assert spec["default_version"] in spec["version_configs"]
    for version in spec["version_configs"].values():
        assert version.keys() <= VERSION
        assert version["custom_framework"] in FRAMEWORKS


async def test_gpustack_starts_the_server(spec: dict[str, Any], tmp_path: Path) -> None:
    """A folder as the model, its name in GPUStack, the health check, and a picture through the gateway."""
    write_test_model(tmp_path)
    words = command(spec, model_path=str(tmp_path), model_name="my-model", port="0", worker_ip="127.0.0.1")
    assert (spec["default_entrypoint"], words[0]) == ("gguf-imagegen", "serve")
    server = ServerProcess(tmp_path, *words[1:], "--host", "127.0.0.1")
    try:
        server.wait_until_ready()
        async with aiohttp.ClientSession(server.url) as session:
            async with session.get(spec["health_check_path"]) as answer:
                assert answer.status == 200
            async with session.get("/v1/models") as answer:
                assert "my-model" in await answer.text()
            asked = {**SMALL, "model": "my-model", "steps": 2, "stream": True}
            async with session.post(GENERATIONS, json=asked, headers={"X-Target-Port": "1"}) as answer:
                page = read(await answer.text())
        assert picture(page.pictures[0]).size == (64, 64)
    finally:
        server.stop()


def read(text: str) -> Page:
    """What the page shows of a stream that came through the gateway."""
    page = Page()
    for part in by_frames(by_lines(text)):
        page.read(part)
    return page


async def streamed(app: App, **fields: Any) -> str:
    asked = {**SMALL, "stream": True, **fields}
    async with app.session.post(app.url + GENERATIONS, json=asked, headers={"X-Target-Port": "1"}) as answer:
        assert answer.status == 200
        return await answer.text()


async def test_the_page_shows_pictures_and_progress(running: RunningApp) -> None:
    """Several pictures, in pieces: progress never falls, and ends at 100 with the picture."""
    async with running(engine=QuickEngine) as app:
        text = await streamed(app, n=2, steps=3, stream_options={"include_usage": True, "chunk_size": 64})
    page = read(text)
    assert page.error is None
    assert {index: picture(data).size for index, data in page.pictures.items()} == {0: (64, 64), 1: (64, 64)}
    for shown in page.progress.values():
        assert shown == sorted(shown)
        assert shown[-1] == 100
    usages = [json.loads(part[6:])["usage"] for part in text.split("\n\n") if part.startswith("data: {")]
    assert [usage is not None for usage in usages].count(True) == 1
    assert usages[-1]


async def test_silence_does_not_break_the_page(running: RunningApp) -> None:
    """Places in the queue and heartbeats come as frames without pictures: comments would eat what follows."""
    async with running(engine=SlowEngine, heartbeat=0.05) as app:
        text = await streamed(app, steps=1)
    assert text.count('"data":[]') > 2
    assert [part for part in text.split("\n\n") if part and not part.startswith("data: ")] == []
    assert picture(read(text).pictures[0]).size == (64, 64)


async def test_the_page_shows_the_error(running: RunningApp) -> None:
    async with running(engine=CrashesAtStep) as app:
        page = read(await streamed(app, steps=3))
    assert page.error is not None
    assert page.error["message"]
