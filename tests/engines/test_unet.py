"""Textual inversions and ControlNets on the real engine, whose sizes for SD1 are fixed: 3 GB and minutes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Embedding, LoadSpec
from gguf_imagegen.vocabulary.events import Made
from tests.engines.test_process import SPEC
from tests.unet import write_control_net, write_embedding, write_sd1

ONE_STEP = replace(SPEC, steps=1, prompt="a photo of easy, red")
SQUARE = RawImage(
    64, 64, 3, bytes(255 * (16 < x < 48 and 16 < y < 48) for y in range(64) for x in range(64) for _ in "rgb")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sd1")
    write_sd1(folder)
    write_control_net(folder / "control.safetensors")
    yield folder
    for path in folder.glob("*.safetensors"):
        path.unlink()


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[EngineProcess]:
    engine = EngineProcess()
    files: Any = {"model": folder / "sd1.safetensors", "taesd": folder / "sd1-tae.safetensors"}
    files["control_net"] = folder / "control.safetensors"
    async for _ in engine.load(LoadSpec("sd1", files, threads=2, embeddings=True)):
        pass
    yield engine
    await engine.close()


async def made(engine: EngineProcess, **fields: Any) -> bytes:
    events = [event async for event in engine.run(replace(ONE_STEP, **fields))]
    (picture,) = [event.artifact for event in events if isinstance(event, Made)]
    return picture.data


async def test_both_change_the_picture_that_asks_for_them(engine: EngineProcess, folder: Path) -> None:
    """And no other one: plain pictures are the same bytes before and after."""
    easy = Embedding("easy", write_embedding(folder / "easy.safetensors"))
    half = Embedding("half", write_embedding(folder / "half.safetensors", rows=3, kind="f2", seed=1))
    plain = await made(engine)
    named = await made(engine, embeddings=(easy,))
    assert named != plain
    assert await made(engine, embeddings=(easy,), prompt="a photo of EMBEDDING:Easy, red") == named
    assert await made(engine, embeddings=(easy, half), prompt="(half:1.2), easy") not in (plain, named)
    drawn = await made(engine, control_image=SQUARE)
    edges = await made(engine, control_image=SQUARE, control_canny=True)
    assert len({plain, named, drawn, edges}) == 4
    assert await made(engine) == plain
