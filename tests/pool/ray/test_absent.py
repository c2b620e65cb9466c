"""A server of a cluster whose machines, or files on them, are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguf_imagegen.catalog.catalog import Catalog, load_catalog
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.pool.pool import Pool
from gguf_imagegen.pool.ray import files
from gguf_imagegen.pool.ray.engine import Line
from gguf_imagegen.pool.ray.files import Known
from gguf_imagegen.pool.ray.lane import FarLane
from gguf_imagegen.pool.ray.messages import WIRE, Offer, OfferedDevice
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Engine
from gguf_imagegen.vocabulary.errors import MissingComponent
from gguf_imagegen.vocabulary.waits import USUAL
from tests.api.client import GENERATIONS, SMALL
from tests.conftest import App, runner_of

pytestmark = pytest.mark.posix

NOBODY = {"cluster": "127.0.0.1:9", "insecure_cluster": True, "devices": ("none",)}
"""Port 9 takes no connection."""


async def begin(app: App, **fields: Any) -> tuple[int, Any]:
    wishes = {"Prefer": "respond-async"}
    async with app.session.post(app.url + GENERATIONS, json={**SMALL, **fields}, headers=wishes) as answer:
        return answer.status, await answer.json()


async def test_jobs_wait_for_machines_over_a_restart(tmp_path: Path) -> None:
    """Taken although nobody has the model; and taken back although nobody has it."""
    models = tmp_path / "no-models"
    models.mkdir()
    running = runner_of(models)
    async with running(**NOBODY, state_dir=tmp_path / "state") as app:
        status, job = await begin(app)
        assert status == 202
    async with running(**NOBODY, state_dir=tmp_path / "state") as app:
        await app.service.knows_the_past.wait()
        _, found = await app.get(f"/v1/jobs/{job['id']}")
        assert (found["status"], found["error"]) == ("queued", None)


def make_none(device: Device) -> Engine:
    raise AssertionError("there is no device")


def lane_of(settings: Settings, catalog: Catalog) -> FarLane:
    """Of a node that has what lies in the folders of these settings."""
    device = OfferedDevice("cpu", 1, None, 1 << 40, None)
    offer = Offer(WIRE, "1", "n", devices=[device])
    line = Line("n/cpu", lambda order: None, lambda: None)
    made = FarLane(Known(catalog), settings, offer, device, line, USUAL, lambda lane, entry: False)
    made.take_stock(files.stock(settings))
    return made


def test_add_ons_that_no_machine_has_are_named(model_dir: Path, tmp_path: Path) -> None:
    """At the door, once there are machines that have the model; without them a job waits."""
    style, folder = tmp_path / "style.safetensors", tmp_path
    settings = Settings(models_dir=model_dir, cluster="head:1", devices=("none",), lora_dir=folder)
    catalog = load_catalog(model_dir)
    entry, pool = catalog.get("tiny-random"), Pool(catalog, settings, make_none, ())
    pool.require(entry, (style,))
    pool.add(lane_of(settings, catalog))
    pool.require(entry, ())
    with pytest.raises(MissingComponent, match=r"style\.safetensors.*--lora-dir"):
        pool.require(entry, (style,))
    style.touch()
    pool.add(lane_of(settings, catalog))
    pool.require(entry, (style,))


def test_work_without_a_model_needs_none(tmp_path: Path, model_dir: Path) -> None:
    """A node without models enlarges pictures, if it has the upscaler."""
    (tmp_path / "double.gguf").touch()
    settings = Settings(models_dir=tmp_path, cluster="head:1", devices=("none",), upscaler_dir=tmp_path)
    lane = lane_of(settings, load_catalog(model_dir))
    assert lane.has(None, (tmp_path / "double.gguf",))
    assert not lane.has(None, (tmp_path / "triple.gguf",))
    assert not lane.has(load_catalog(model_dir).get("tiny-random"))
