"""A server of a cluster whose machines, or files on them, are not there."""

from __future__ import annotations

import shutil
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
from gguf_imagegen.vocabulary.waits import USUAL, Waits
from tests.api.client import GENERATIONS, SMALL
from tests.api.test_loras import RENAMED
from tests.conftest import App, runner_of
from tests.pool.ray.conftest import until
from tests.pool.ray.near import Near, near_cluster
from tests.weights import write_safetensors

pytestmark = pytest.mark.posix

NOBODY = {"cluster": "127.0.0.1:9", "insecure_cluster": True, "devices": ("none",)}
"""Port 9 takes no connection."""
LORA = {"lora": [{"name": "style"}]}


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


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """A folder of add-ons, beside an empty one for models."""
    folder = tmp_path / "loras"
    folder.mkdir()
    (tmp_path / "empty").mkdir()
    tensors, _ = RENAMED["wrapped"]
    write_safetensors(folder / "style.safetensors", tensors)
    return folder


async def job_of(near: Near, id: str) -> Any:
    return (await near.app.get(f"/v1/jobs/{id}"))[1]


@pytest.mark.parametrize("words", ["style.safetensors in its --lora-dir", "(a) has the model 'tiny-random'"])
async def test_a_job_that_no_machine_can_do_is_told_and_fails(
    words: str, model_dir: Path, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken before the machines came; one behind it that they can do is done."""
    there = tmp_path / "there"
    shutil.copytree(model_dir, there)
    if "model" in words:
        (there / "tiny-random.gguf").unlink()
    waits = Waits(cluster_again=3600, absent_told=0, absent=0.2)
    async with near_cluster(monkeypatch, tmp_path / "empty", waits=waits, lora_dir=loras) as near:
        _, taken = await begin(near.app, **LORA)
        near.node("a", there, "Tells")

        async def failed() -> Any:
            found = await job_of(near, taken["id"])
            return found["status"] == "failed" and found

        job = await until(failed, "the end of the job")
        assert words in job["error"]["message"]
        assert any("; the job waits" in each for each in job["warnings"])
        if "model" not in words:
            assert (await near.app.post(GENERATIONS, **SMALL))[0] == 200


async def test_a_job_that_was_told_waits_for_a_machine_that_can_do_it(
    model_dir: Path, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Waits(cluster_again=3600, absent_told=0)
    async with near_cluster(monkeypatch, tmp_path / "empty", waits=waits, lora_dir=loras) as near:
        _, taken = await begin(near.app, **LORA)
        near.node("a", model_dir, "Tells")

        async def told() -> bool:
            found = await job_of(near, taken["id"])
            return any("--lora-dir; copy" in each for each in found["warnings"])

        async def done() -> bool:
            return bool((await job_of(near, taken["id"]))["status"] == "succeeded")

        await until(told, "the notice")
        near.node("b", model_dir, "Tells", lora_dir=loras)
        await until(done, "a picture")
