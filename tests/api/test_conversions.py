"""Conversions over HTTP: by the real engine to a model that draws, by fakes what is followed and ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.catalog.catalog import load_catalog
from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.vocabulary.engine import Task
from gguf_imagegen.vocabulary.errors import WorkerCrashed
from gguf_imagegen.vocabulary.events import EngineEvent, Loading
from tests.api.client import SMALL, eventually, read_stream
from tests.conftest import App, RunningApp
from tests.fake_engines import QuickEngine

CONVERT = "/v1/models/convert"
RESULT = "tiny-random-q8_0"


class Stuck(QuickEngine):
    """Reads half of a file, writes some of the other, and no more."""

    async def run(self, task: Task) -> AsyncIterator[EngineEvent]:
        task.target.write_bytes(b"GGUF")  # type: ignore[union-attr]
        yield Loading("tiny", 1, 2)
        await self.pause(None)


class Dead(QuickEngine):
    """Leaves a part of a file and is gone."""

    async def run(self, task: Task) -> AsyncIterator[EngineEvent]:
        task.target.write_bytes(b"GGUF")  # type: ignore[union-attr]
        yield Loading("tiny", 1, 2)
        raise WorkerCrashed("It was killed.")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    write_test_model(folder)
    return folder


def hidden(models: Path) -> list[Path]:
    return [path for path in (models / "converted").iterdir() if path.name.startswith(".")]


async def ended(app: App, name: str = RESULT) -> Any:
    async def look() -> Any:
        _, body = await app.get(f"{CONVERT}/{name}")
        return body if body["status"] not in ("waiting", "running") else None

    return await eventually("the conversion ends", look)


async def test_a_result_is_a_model_of_the_server(running: RunningApp, models: Path) -> None:
    """It draws at once, and after a restart; its progress is told, and it goes as it came."""
    asked = {"model": "tiny-random", "type": "q8_0"}
    async with running(models_dir=models) as app:
        async with app.session.post(app.url + CONVERT, json=asked) as answer:
            assert answer.status == 200, await answer.text()
            stream = read_stream(await answer.text(), dict(answer.headers))
        *progress, last = stream.events
        assert last.event == "done", last
        done = last.data
        assert (done["object"], done["model"], done["status"]) == ("model.conversion", RESULT, "succeeded")
        assert done["done"] == done["total"] > 0
        assert 10 < done["psnr"] <= 100
        assert done["not_compared"] is None
        told = [each.data["status"] for each in progress]
        assert told[0] == "planned"
        assert {"hashing", "comparing", "ready"} < set(told)
        assert all(each.data["overall"]["total"] == done["total"] for each in progress)
        target = models / "converted" / f"{RESULT}.gguf"
        assert read_header(target).quantization["Q8_0"] > 0.9
        assert hidden(models) == []
        status, body = await app.post("/v1/images/generations", **SMALL, model=RESULT)
        assert status == 200, body
        status, body = await app.post(CONVERT, **asked, stream=False)
        assert (status, body["error"]["param"]) == (400, "name")
        assert '"force": true' in body["error"]["message"]
        status, body = await app.post(CONVERT, **asked, force=True, stream=False)
        assert (status, body["error"]["code"]) == (409, "model_busy")
        entry = load_catalog(models).get(RESULT)
        assert entry == app.app[SERVICE].catalog.get(RESULT)
        assert await app.post(f"/v1/models/{RESULT}/unload")
        async with app.session.delete(f"{app.url}/v1/models/{RESULT}?files=true") as answer:
            assert answer.status == 200, await answer.text()
            assert (await answer.json())["removed"] == [f"converted/{RESULT}.gguf"]


async def test_one_that_goes_on_is_joined_and_ended(running: RunningApp, models: Path) -> None:
    """By its name; nothing is left, and another one to that name is refused meanwhile."""
    async with running(models_dir=models, engine=Stuck) as app:
        for _ in range(2):
            status, body = await app.post(CONVERT, model="tiny-random", type="q8_0", stream=False)
            assert status == 202, body
        status, body = await app.post(CONVERT, model="tiny-random", type="q4_0", name=RESULT, stream=False)
        assert (status, body["error"]["code"]) == (409, "model_busy")

        async def writes() -> bool:
            return len(hidden(models)) == 2

        await eventually("it writes", writes)
        async with app.session.delete(f"{app.url}{CONVERT}/{RESULT}") as answer:
            body = await answer.json()
        assert (body["status"], body["error"]["code"]) == ("cancelled", "cancelled")
        assert hidden(models) == []
        assert not app.app[SERVICE].catalog.knows(RESULT)


async def test_what_fails_is_said_and_leaves_nothing(running: RunningApp, models: Path) -> None:
    async with running(models_dir=models, engine=Dead) as app:
        await app.post(CONVERT, model="tiny-random", type="q8_0", stream=False)
        body = await ended(app)
        assert (body["status"], body["error"]["code"]) == ("failed", "worker_crashed")
        async with app.session.post(
            app.url + CONVERT, json={"model": "tiny-random", "type": "q8_0"}
        ) as answer:
            assert "event: error" in await answer.text()
        assert hidden(models) == []


async def test_a_server_that_ends_ends_them(running: RunningApp, models: Path) -> None:
    async with running(models_dir=models, engine=Stuck) as app:
        await app.post(CONVERT, model="tiny-random", type="q8_0", stream=False)

        async def writes() -> bool:
            return len(hidden(models)) == 2

        await eventually("it writes", writes)
    assert hidden(models) == []


async def test_what_a_killed_server_left_is_gone(running: RunningApp, models: Path) -> None:
    folder = models / "converted"
    folder.mkdir()
    for name in (".x.gguf.part", ".x.gguf.converting"):
        (folder / name).touch()
    async with running(models_dir=models, engine=QuickEngine):
        assert hidden(models) == []


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"type": "q8_0"}, 400, "model", "required"),
        ({"model": "none", "type": "q8_0"}, 404, "model", "there is no model"),
        ({"model": "embedded", "type": "q8_0"}, 400, "model", "comes with this program"),
        ({"model": "tiny-random", "type": "q9"}, 400, "type", "choose one of f32"),
        ({"model": "tiny-random", "type": "q8_0", "rules": "x"}, 400, "rules", "PATTERN=TYPE"),
        ({"model": "tiny-random", "type": "q8_0", "name": "../x"}, 400, "name", "pattern"),
        ({"model": "tiny-random", "type": "q8_0", "name": "sd-turbo"}, 400, "name", "is another model"),
        ({"model": "tiny-random", "type": "q8_0", "vae": True}, 400, "vae", "no VAE in a file of its own"),
    ],
)
async def test_what_cannot_be_converted_is_refused(
    running: RunningApp, models: Path, body: dict[str, Any], status: int, param: str, words: str
) -> None:
    async with running(models_dir=models, engine=Dead) as app:
        found, answer = await app.post(CONVERT, **body)
        assert (found, answer["error"]["param"]) == (status, param)
        assert words in answer["error"]["message"]
        assert (await app.get(f"{CONVERT}/{RESULT}"))[1]["error"]["code"] == "conversion_not_found"
