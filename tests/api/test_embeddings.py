"""Textual inversions through the front door, with a quick engine that shows what reached it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_imagegen.vocabulary.engine import Embedding
from tests.api.client import GENERATIONS, SMALL
from tests.conftest import RunningApp
from tests.fake_engines import QuickEngine, SeeingEngine
from tests.unet import write_embedding, write_sd1
from tests.weights import write_safetensors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an SD1 model of nothing but zeros, in sparse files."""
    folder = tmp_path_factory.mktemp("sd1")
    write_sd1(folder, alive=False)
    return folder


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    write_embedding(tmp_path / "easyneg.safetensors")
    write_embedding(tmp_path / "two.safetensors", rows=3, width=1024)
    write_safetensors(tmp_path / "broken.safetensors", {"a": np.ones(3, np.float32)})
    (tmp_path / "old.pt").write_bytes(b"PK")
    return tmp_path


async def test_prompts_name_embeddings(running: RunningApp, models: Path, embeddings: Path) -> None:
    """On each dialect; a new file counts without another load, and the prompt stays as it was written."""
    seen: list[Any] = []
    settings = {"models_dir": models, "model": str(models / "sd1.safetensors"), "embedding_dir": embeddings}
    async with running(engine=lambda: SeeingEngine(seen), memory_check=False, **settings) as app:
        status, body = await app.post(GENERATIONS, **SMALL, negative_prompt="(easyneg:1.1), two")
        assert status == 200, body
        assert body["warnings"] == ["embedding: 'two' has no effect: it is for sd2 models, not sd1"]
        write_embedding(embeddings / "late.safetensors")
        fields = {"prompt": "a late cat", "width": 64, "height": 64, "steps": 1}
        assert (await app.post("/sdapi/v1/txt2img", **fields))[0] == 200
        status, body = await app.post(GENERATIONS, **{**SMALL, "prompt": "embedding:none"})
        assert status == 400
        assert "known: broken, easyneg, late, old, two" in body["error"]["message"]
    loaded, first, second = seen
    assert loaded.embeddings
    assert first.negative_prompt == "(easyneg:1.1), two"
    assert first.embeddings == (Embedding("easyneg", embeddings / "easyneg.safetensors"),)
    assert second.embeddings == (Embedding("late", embeddings / "late.safetensors"),)


async def test_they_are_listed(running: RunningApp, models: Path, embeddings: Path) -> None:
    """Our list says of each what it is; AUTOMATIC1111's parts those that the model cannot use."""
    settings = {"models_dir": models, "model": str(models / "sd1.safetensors"), "embedding_dir": embeddings}
    async with running(engine=QuickEngine, memory_check=False, **settings) as app:
        _, addons = await app.get("/v1/addons")
        _, listed = await app.get("/sdapi/v1/embeddings")
        assert (await app.post("/sdapi/v1/refresh-embeddings"))[0] == 200
    by_name = {each.pop("name"): each for each in addons["embeddings"]}
    assert by_name["easyneg"] == {"family": "sd1", "vectors": 2, "fault": None}
    assert by_name["two"]["family"] == "sd2"
    assert "convert it to safetensors" in by_name["old"]["fault"]
    assert "no textual inversion" in by_name["broken"]["fault"]
    assert set(listed["loaded"]) == {"easyneg"}
    assert set(listed["skipped"]) == {"two", "old", "broken"}
    assert listed["loaded"]["easyneg"]["shape"] == 768
