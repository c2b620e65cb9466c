"""Pictures of a cluster are files when they leave their node: its server encodes none, and gets no pixels."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from gguf_imagegen.engines import wire
from gguf_imagegen.pool.ray.messages import Told
from gguf_imagegen.vocabulary.events import EngineEvent, PictureFile, PreviewFile, Progress
from tests.api.client import GENERATIONS, SMALL, eventually, noise, png, post_stream
from tests.conftest import App, RunningApp
from tests.pool.ray.near import Near, near_cluster
from tests.weights import write_upscaler

pytestmark = pytest.mark.posix

SETS = "/v1/images/sets"


def told(near: Near) -> list[EngineEvent]:
    """The events that lanes have sent."""
    return [wire.decode(word.event) for word in near.said if isinstance(word, Told)]


async def files_of(app: App, items: list[dict[str, Any]]) -> list[bytes]:
    """The pictures of an answer, at their addresses or in it."""
    found = []
    for item in items:
        if item.get("b64_json"):
            found.append(base64.b64decode(item["b64_json"]))
            continue
        async with app.session.get(item["url"]) as answer:
            found.append(await answer.read())
    return found


async def posted(app: App, path: str, **fields: Any) -> list[bytes]:
    status, body = await app.post(path, **fields)
    assert status == 200, body
    return await files_of(app, body["data"])


async def streamed(app: App) -> tuple[list[bytes], list[bytes]]:
    """Pictures, and previews."""
    stream = await post_stream(app.session, app.url + GENERATIONS, n=2, steps=4, partial_images=2)
    found: dict[str, list[bytes]] = {"completed": [], "partial_image": []}
    for event in stream.events[:-1]:
        kind = event.data["type"].rpartition(".")[2]
        if kind in found:
            found[kind].append(base64.b64decode(event.data["b64_json"]))
    return found["completed"], found["partial_image"]


async def of_a_set(app: App) -> list[bytes]:
    status, made = await app.post(SETS, prompts=["a cat", "a dog"], size="64x64", steps=1)
    assert status == 202, made

    async def over() -> Any:
        _, body = await app.get(f"{SETS}/{made['id']}")
        return body if body["ended"] else None

    return await files_of(app, (await eventually("the set has ended", over))["items"])


async def test_what_leaves_a_node_is_what_callers_get(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte: pictures, previews, what was enlarged as it was made or later, and those of sets."""
    write_upscaler(tmp_path / "double.gguf", 2)
    folders: dict[str, Any] = {"upscaler_dir": tmp_path}
    async with near_cluster(monkeypatch, tmp_path, **folders) as near:
        near.node("a", model_dir, "Tells", **folders)
        await near.ready("a")
        pictures, previews = await streamed(near.app)
        assert (len(pictures), len(previews) > 0) == (2, True)
        larger = {"upscale": 2, "upscaler": "double"}
        pictures += await posted(near.app, GENERATIONS, **SMALL, **larger, output_format="webp")
        image = base64.b64encode(png(noise(64, 64))).decode()
        pictures += await posted(near.app, "/v1/images/upscale", image=image, **larger)
        pictures += await of_a_set(near.app)
        events = told(near)
    assert sorted(pictures) == sorted(each.data for each in events if isinstance(each, PictureFile))
    assert set(previews) <= {each.data for each in events if isinstance(each, PreviewFile)}
    assert any(isinstance(each, Progress) for each in events)
    with_pixels = {type(each).__name__ for each in events} & {"Made", "Preview"}
    assert not with_pixels


async def test_the_real_engine_draws_the_same_on_a_node(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: RunningApp
) -> None:
    """Byte for byte, with all that is written in the file."""
    drawn = {"seed": 5, "steps": 3, "prompt": "the same", "size": "64x64"}
    async with running(any_model=True) as here:
        made = await posted(here, GENERATIONS, **drawn)
    async with near_cluster(monkeypatch, tmp_path) as near:
        near.node("a", model_dir, "sdcpp")
        await near.ready("a")
        assert await posted(near.app, GENERATIONS, **drawn) == made


async def test_a_dry_run_of_a_model_that_a_node_has(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is the node's to look after; a request that would be made is not refused."""
    async with near_cluster(monkeypatch, tmp_path) as near:
        near.node("far", model_dir)
        await near.ready("far")
        status, told = await near.app.post(GENERATIONS, **SMALL, dry_run=True)
        assert (status, told["model"], told["memory"], told["cheaper"]) == (200, "tiny-random", None, None)
