"""Weights that are converted while they are loaded: pictures and memory as of a converted file."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_imagegen.catalog.catalog import Catalog, entry_of_file
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.memory import estimate
from gguf_imagegen.catalog.verdict import weights_of
from gguf_imagegen.commands.tune import work_for
from gguf_imagegen.commands.tuning.measure import Effort
from gguf_imagegen.engines.conversion import convert, ordered, replacing
from gguf_imagegen.engines.making import make
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.modelfiles.weight_types import as_loaded
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Role, WeightType


async def written(source: Path, target: Path, kind: str, decoder: Path) -> Entry:
    """The model in another type."""
    order = ordered(source, target, kind)
    with replacing(order.target):
        await convert(EngineProcess(), order, lambda what, done, total: None)
    return entry_of_file(target, {"taesd": decoder})


async def picture(entry: Entry, weight_type: WeightType | None) -> bytes:
    settings = Settings(threads=1, memory_check=False, weight_type=weight_type)
    work = work_for(Catalog([entry], Path()), entry, settings, Effort(1, 0), "64x64")
    engine = EngineProcess()
    try:
        async for _ in engine.load(work.model):
            pass
        return (await make(engine, work.picture)).image.data
    finally:
        await engine.close()


def headers(entry: Entry) -> dict[Role, Header]:
    return Catalog([entry], Path()).checked_files(entry)


async def test_a_loaded_type_is_that_of_a_converted_file(model_dir: Path, tmp_path: Path) -> None:
    """Pictures to the byte, and the estimate of the weights; what is quantised stays as it is."""
    decoder = model_dir / "tiny-random-tae.gguf"
    wide = await written(model_dir / "tiny-random.gguf", tmp_path / "wide.gguf", "f16", decoder)
    small = await written(tmp_path / "wide.gguf", tmp_path / "small.gguf", "q4_0", decoder)
    loaded = await picture(wide, "q4_0")
    assert loaded != await picture(wide, None)
    assert loaded == await picture(small, "q8_0")
    weights = [
        estimate(files, "ovis-image", 64, 64, gpu=False).weights
        for files in (headers(wide), as_loaded(headers(wide), "q4_0"), headers(small))
    ]
    assert weights[0] > 2 * weights[1]
    assert weights[1] == pytest.approx(weights[2], rel=0.05)
    for settings in (Settings(), Settings(weight_type="q8_0")):
        assert weights_of(small, headers(small), settings) is None
    assert weights_of(wide, headers(wide), Settings(weight_type="q8_0")) == "q8_0"
    own = wide.model_copy(update={"weight_type": "q5_0"})
    assert weights_of(own, headers(wide), Settings(weight_type="q8_0")) == "q5_0"
