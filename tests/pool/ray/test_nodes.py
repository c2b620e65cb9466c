"""What nodes do besides drawing: they fetch models that they lack, and are drained."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gguf_imagegen.api.job_spans import spans_of
from tests.api.client import GENERATIONS, SMALL
from tests.hub import HubServer, write_catalog
from tests.pool.ray.conftest import until
from tests.pool.ray.near import Near, near_cluster

pytestmark = pytest.mark.posix


async def test_a_node_fetches_what_a_job_needs(
    model_dir: Path, tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into its own folder, if it is told to; the server never has the model, and its trace is whole."""
    files = {
        role: hub.add("org/tiny", name, (model_dir / name).read_bytes())
        for role, name in (("model", "tiny-random.gguf"), ("taesd", "tiny-random-tae.gguf"))
    }
    catalog = write_catalog(tmp_path / "hub.yaml", far=files)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    async with near_cluster(monkeypatch, here, catalog=catalog) as near:
        asked = {**SMALL, "model": "far"}
        near.node("a", there)
        await until(lambda: near.app.service.pool.lanes, "a lane")
        status, body = await near.app.post(GENERATIONS, **asked)
        assert (status, body["error"]["code"]) == (404, "model_not_downloaded")
        near.node("b", there, "Tells", pulls=True)
        await until(lambda: len(near.app.service.pool.lanes) == 2, "another lane")
        assert (await near.app.post(GENERATIONS, **asked))[0] == 200
        (job,) = near.app.scheduler.jobs.values()
    assert job.lane == "b/cpu"
    spans = {span.name: span for span in spans_of(job)}
    assert [*spans] == ["queue", "start", "load", "conditioning", "sampling", "decoding"]
    assert spans["start"].attributes == {"imagegen.lane": "b/cpu"}
    assert len(spans["sampling"].moments) == SMALL["steps"]
    assert len(list(there.rglob("*.gguf"))) == 2
    assert not list(here.rglob("*.gguf"))


async def test_a_drained_node_ends_what_it_does(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job succeeds, the next one goes elsewhere, and then it is released."""
    async with near_cluster(monkeypatch, tmp_path) as near:
        near.node("a", model_dir, "Slows")
        await near.ready("a")
        making = asyncio.create_task(near.app.post(GENERATIONS, **{**SMALL, "steps": 10}))
        await until(lambda: near.app.scheduler.running, "work on a")
        status, node = await near.app.post("/v1/cluster/nodes/a/drain")
        assert (status, node["status"]) == (200, "draining")
        near.node("b", model_dir)
        await near.ready("b")
        assert (await near.app.post(GENERATIONS, **SMALL))[0] == 200
        assert (await making)[0] == 200
        await until(lambda: "a" in near.released, "the release of a")
        assert [job.lane for job in near.app.scheduler.jobs.values()] == ["a/cpu", "b/cpu"]
        assert await statuses(near) == {"a": "drained", "b": "ready"}
        assert not near.cluster.lost


async def statuses(near: Near) -> dict[str, Any]:
    found = (await near.app.get("/health"))[1]["cluster"]["nodes"]
    return {each["name"]: each["status"] for each in found}
