"""Dry runs: what a picture would cost, in every dialect alike, without making it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from gguf_imagegen.api.job_answers import DryRun
from tests.api.client import GENERATIONS, SMALL
from tests.api.recipes import write_catalog
from tests.conftest import App, RunningApp
from tests.fake_engines import QuickEngine
from tests.survival import b64, png

DRY: dict[str, Any] = {**SMALL, "dry_run": True}
PICTURE = b64(png(64, 64))
ROUTES: dict[str, dict[str, Any]] = {
    GENERATIONS: DRY,
    "/v1/images/edits": {**DRY, "image": PICTURE},
    "/v1/images/variations": {**DRY, "image": PICTURE},
    "/v1/images/inpainting": {**DRY, "image": PICTURE, "mask": PICTURE},
    "/v3/images/generations": DRY,
    "/v1-openai/images/generations": DRY,
    "/openai/deployments/tiny-random/images/generations": DRY,
    "/v1/chat/completions": {**DRY, "messages": [{"role": "user", "content": "a cat"}]},
    "/v1/responses": {**DRY, "input": "a cat", "tools": [{"type": "image_generation"}]},
    "/sdapi/v1/txt2img": {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "dry_run": True},
    "/sdapi/v1/img2img": {**DRY, "width": 64, "height": 64, "init_images": [PICTURE]},
    "/sdcpp/v1/img_gen": {
        "prompt": "a cat", "width": 64, "height": 64, "sample_params": {"sample_steps": 2}, "dry_run": True,
    },
}  # fmt: skip


@pytest_asyncio.fixture
async def app(running: RunningApp, tmp_path: Path) -> AsyncIterator[App]:
    async with running(engine=QuickEngine, catalog=write_catalog(tmp_path)) as app:
        yield app


@pytest.mark.parametrize("path", ROUTES)
async def test_every_dialect(app: App, path: str) -> None:
    """One shape of answer, also where a stream was asked for, and no job."""
    status, body = await app.post(path, **{"stream": True, **ROUTES[path]})
    assert status == 200, body
    found = DryRun.model_validate(body)
    assert (found.model, found.n, found.tiles) == ("tiny-random", 1, 1)
    assert (found.parameters.width, found.parameters.height, found.parameters.steps) == (64, 64, 2)
    assert found.memory is not None
    assert found.memory.fits
    assert found.cheaper is None
    assert not app.scheduler.jobs


@pytest.mark.parametrize("path", ["extra-single-image", "extra-batch-images"])
async def test_where_there_is_none(app: App, path: str) -> None:
    """Nothing is made, and the error names the route that has one."""
    body = {"image": PICTURE, "imageList": [{"data": PICTURE}], "upscaler_1": "Lanczos", "dry_run": True}
    status, answer = await app.post(f"/sdapi/v1/{path}", **body)
    assert (status, answer["error"]["param"]) == (400, "dry_run")
    assert "POST /v1/images/upscale" in answer["error"]["message"]


async def test_a_form(app: App) -> None:
    """A form says it like all else."""
    form = aiohttp.FormData(
        {"prompt": "a cat", "size": "64x64", "dry_run": "true"}, default_to_multipart=True
    )
    async with app.session.post(app.url + GENERATIONS, data=form) as answer:
        assert (await answer.json())["object"] == "dry_run"


async def test_seconds_are_those_that_were_measured(app: App) -> None:
    """Nothing is known before the first picture; then each step and picture counts."""
    _, before = await app.post(GENERATIONS, **DRY)
    assert before["seconds"] is None
    for _ in range(2):
        await app.post(GENERATIONS, **SMALL)
    _, after = await app.post(GENERATIONS, **{**DRY, "steps": 4, "n": 3})
    assert after["seconds"] == pytest.approx(3 * (4 * 0.010 + 0.005))  # what the engine says it takes
    assert after["load_seconds"] == 0


async def test_what_was_measured_outlives_the_server(running: RunningApp, tmp_path: Path) -> None:
    """Seconds of work that is alike, and of a load; a file that nobody can read says nothing."""
    kept = {"engine": QuickEngine, "catalog": write_catalog(tmp_path), "state_dir": tmp_path / "state"}
    async with running(**kept) as app:
        for _ in range(2):
            await app.post(GENERATIONS, **SMALL)
        _, before = await app.post(GENERATIONS, **DRY)
    async with running(**kept) as app:
        _, after = await app.post(GENERATIONS, **DRY)
        assert after["seconds"] == before["seconds"] == pytest.approx(2 * 0.010 + 0.005)
        assert after["load_seconds"] is not None
    file = tmp_path / "state" / "pace.json"
    assert file.stat().st_mode & 0o077 == 0
    file.write_text("[]")
    async with running(**kept) as app:
        assert (await app.post(GENERATIONS, **DRY))[1]["seconds"] is None


async def test_warnings_and_refusals_are_the_real_ones(app: App) -> None:
    """As of the request itself: sizes that are changed, names that are not known."""
    asked = {**SMALL, "size": "2048x1024", "steps": 1}
    _, dry = await app.post(GENERATIONS, **asked, dry_run=True)
    _, real = await app.post(GENERATIONS, **asked)
    assert dry["warnings"] == real["warnings"]
    assert "{width}x{height}".format(**dry["parameters"]) == real["size"]
    wrong = {**SMALL, "sampler": "fast"}
    assert await app.post(GENERATIONS, **wrong, dry_run=True) == await app.post(GENERATIONS, **wrong)


async def test_tiles(app: App) -> None:
    """Those that the decoder takes, which overlap by a quarter."""
    _, found = await app.post(GENERATIONS, **{**DRY, "size": "1024x512", "vae_tiling": True})
    assert found["tiles"] == 4 * 2
