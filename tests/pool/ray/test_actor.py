"""A lane's end on its node, without Ray: orders go in, batches come out, and nothing is left behind."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from PIL import Image

from gguf_imagegen.catalog.catalog import load_catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.engines import wire
from gguf_imagegen.jobs.finish import finish_of
from gguf_imagegen.planning.plan import Plan, plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.planning.upscale import Enlargement
from gguf_imagegen.pool.ray import files, messages
from gguf_imagegen.pool.ray.actor import EngineActor
from gguf_imagegen.pool.ray.messages import (
    Beat,
    Close,
    Closed,
    Do,
    Enlarge,
    FileState,
    Load,
    Over,
    Stock,
    Told,
    Word,
)
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.errors import InvalidModelFile, ModelNotDownloaded, WorkerCrashed
from gguf_imagegen.vocabulary.events import EngineEvent, Loaded, Made, PictureFile, Progress

pytestmark = pytest.mark.posix


class Lane:
    """An actor, and what it has said."""

    def __init__(self, actor: EngineActor) -> None:
        self.actor = actor
        self.batches: list[list[Word]] = []
        self._changed = asyncio.Event()

    async def read(self) -> None:
        async for batch in self.actor.events():
            self.batches.append(messages.words_of(batch))
            self._changed.set()

    @property
    def words(self) -> list[Word]:
        return [word for batch in self.batches for word in batch]

    async def until(self, kind: type[Word], count: int = 1) -> list[Word]:
        """The words of this kind, once there are so many."""
        while len(found := [word for word in self.words if isinstance(word, kind)]) < count:
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 30)
        return found

    def events(self, run: int) -> list[EngineEvent]:
        return [wire.decode(word.event) for word in self.words if isinstance(word, Told) and word.run == run]


@asynccontextmanager
async def lane(monkeypatch: pytest.MonkeyPatch, models: Path, backend: str = "Tints") -> AsyncIterator[Lane]:
    monkeypatch.setenv("GGUF_IMAGEGEN_MODELS_DIR", str(models))
    monkeypatch.setenv("GGUF_IMAGEGEN_BACKEND", f"tests.far_engines:{backend}")
    made = Lane(EngineActor(0))
    reading = asyncio.create_task(made.read())
    try:
        yield made
    finally:
        reading.cancel()


def entry(models: Path) -> Entry:
    return load_catalog(models).get("tiny-random")


def load(models: Path, engine: int = 1, run: int = 1, **known: FileState) -> bytes:
    model = entry(models)
    names = {str(role): file.as_posix() for role, file in model.files.items()}
    return messages.encode(Load(engine, run, model.model_dump_json().encode(), {}, names, known))


def picture(models: Path, **fields: object) -> Plan:
    request, _ = parse_request({"prompt": "a cat", "size": "64x64", "steps": 4, "seed": 7, **fields})
    return plan(request, entry(models), Settings(models_dir=models), "generation", [])


def draw(made: Plan, engine: int = 1, run: int = 2) -> bytes:
    finish = finish_of(made, marked=True)
    return messages.encode(Do(engine, run, messages.packed(made.spec), finish))


async def test_pictures_and_previews_are_made_into_files(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both, with what describes them, before they leave the node; events leave in batches."""
    async with lane(monkeypatch, model_dir) as made:
        await made.actor.tell(load(model_dir))
        await made.until(Over)
        assert isinstance(made.events(1)[-1], Loaded)
        await made.actor.tell(draw(picture(model_dir, n=2)))
        await made.until(Over, 2)
        pictures = [event for event in made.events(2) if isinstance(event, PictureFile)]
        assert [each.index for each in pictures] == [0, 1]
        for each, seed in zip(pictures, (7, 8), strict=True):
            with Image.open(io.BytesIO(each.data)) as image:
                assert image.size == (64, 64)
                assert f"Seed: {seed}" in image.info["parameters"]
                assert image.convert("RGB").getpixel((0, 0)) == (seed, seed, seed)
        assert sum(isinstance(event, Progress) for event in made.events(2)) == 8
        assert len(made.batches) < len(made.words)


async def test_pictures_are_enlarged_before_they_leave(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After they are drawn, or instead; the file of the upscaler is the node's own."""
    (tmp_path / "double.gguf").touch()
    monkeypatch.setenv("GGUF_IMAGEGEN_UPSCALER_DIR", str(tmp_path))
    made = picture(model_dir, n=2)
    larger = dataclasses.replace(made, upscale=Enlargement(Path("upscaler/double.gguf"), 128, 128))
    finish = finish_of(larger, marked=True)
    grey = messages.packed(Made(1, RawImage(64, 64, 3, bytes(3 * 64 * 64))))
    async with lane(monkeypatch, model_dir) as there:
        await there.actor.tell(load(model_dir))
        await there.until(Over)
        await there.actor.tell(messages.encode(Do(1, 2, messages.packed(made.spec), finish)))
        await there.until(Over, 2)
        await there.actor.tell(messages.encode(Enlarge(1, 3, grey, finish)))
        await there.until(Over, 3)
        drawn, given = there.events(2), there.events(3)
    assert [each.index for each in drawn + given if isinstance(each, PictureFile)] == [0, 1, 1]
    for each in (each for each in drawn + given if isinstance(each, PictureFile)):
        with Image.open(io.BytesIO(each.data)) as image:
            assert image.size == (128, 128)
            assert "Postprocess upscaler: double" in image.info["parameters"]
    assert not any(isinstance(each, Made) for each in drawn + given)


async def test_a_lane_that_has_nothing_to_say_lives(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so every two seconds, and first of all what lies there."""
    async with lane(monkeypatch, model_dir) as made:
        await made.until(Beat)
        stock = made.words[0]
        assert isinstance(stock, Stock)
        assert stock.models["tiny-random.gguf"].size == (model_dir / "tiny-random.gguf").stat().st_size


async def test_a_run_ends_with_its_engine(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it does: the engine is gone before the lane says so, and can be made anew."""
    async with lane(monkeypatch, model_dir, "Seconds") as made:
        await made.actor.tell(load(model_dir))
        await made.until(Over)
        await made.actor.tell(draw(picture(model_dir, steps=50)))
        await made.until(Told, 3)
        await made.actor.tell(messages.encode(Close(1)))
        assert await made.until(Closed) == [Closed(1)]
        await made.actor.tell(load(model_dir, engine=2, run=3))
        await made.until(Over, 2 + sum(isinstance(word, Over) and word.run == 2 for word in made.words))
        assert isinstance(made.events(3)[-1], Loaded)


async def test_a_missing_file_is_named(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is one that is not the server's; neither says where it would lie."""
    async with lane(monkeypatch, tmp_path) as made:
        await made.actor.tell(load(model_dir))
        (over,) = await made.until(Over)
        assert isinstance(over, Over)
        error = messages.error_of(over)
        assert isinstance(error, ModelNotDownloaded)
        assert "tiny-random.gguf" in str(error)
        assert str(tmp_path) not in str(error)
    async with lane(monkeypatch, model_dir) as made:
        await made.actor.tell(load(model_dir, model=FileState(0, "0" * 64)))
        (over,) = await made.until(Over)
        assert isinstance(over, Over)
        assert isinstance(messages.error_of(over), InvalidModelFile)


def test_an_error_keeps_its_kind() -> None:
    """Over the wire; what a later version calls it is still an error."""
    found = messages.error_of(messages.over(1, WorkerCrashed("The engine stopped.")))
    assert isinstance(found, WorkerCrashed)
    assert str(found) == "The engine stopped."
    assert messages.error_of(Over(1)) is None
    assert str(messages.error_of(Over(1, "Later", "of another version"))) == "of another version"


def test_a_node_has_a_model_if_its_files_are_the_same(model_dir: Path) -> None:
    """By name, size and hash, as far as either is known."""
    settings, model = Settings(models_dir=model_dir), entry(model_dir)
    here = files.stock(settings)
    known = files.known_files(model, load_catalog(model_dir))
    assert files.has(here, model, known, settings)
    assert not files.has(Stock({}, {}), model, known, settings)
    main = here.models["tiny-random.gguf"]
    for other in (replace(main, size=main.size + 1), replace(main, sha256="f" * 64)):
        stock = Stock({**here.models, "tiny-random.gguf": other}, {})
        assert files.has(stock, model, {"model": FileState(main.size, "0" * 64)}, settings) is False
