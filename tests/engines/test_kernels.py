"""Our kernels draw what ggml's own draw, with any number of threads, and can be turned off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.engines.making import make
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.machine.kernels import kernels_here
from gguf_imagegen.pictures.nearness import psnr
from gguf_imagegen.planning.load_spec import model_spec
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Convert, Generate, Kernels, Upscale, WeightType
from gguf_imagegen.vocabulary.events import Loaded, Made
from tests.weights import write_upscaler

LEAST_PSNR = 45.0
LEAST_PSNR_INT8 = 30.0
"""As what `tune` may choose."""
PROMPTS = ("a red apple", "a green house", "a blue circle on a yellow background", "cherries", "a black cat")


@pytest.fixture(scope="module")
def seeds(pytestconfig: pytest.Config) -> int:
    return 20 if pytestconfig.getoption("all") else 2


async def drawn(
    kernels: Kernels, threads: int, seeds: int, model: Path | None = None
) -> tuple[str, list[bytes]]:
    """The kernels that the worker has told, and the embedded model's pictures of the seeds from 0 on.

    `model` is a copy of it.
    """
    settings = Settings(model="embedded", kernels=kernels)
    catalog, default = choose_models(settings)
    entry = catalog.get(default)
    spec = model_spec(entry, catalog.paths(entry), catalog.checked_files(entry), settings, threads)
    if model is not None:
        spec = replace(spec, files={**spec.files, "model": model})
    engine = EngineProcess()
    try:
        (told,) = [event.kernels async for event in engine.load(spec) if isinstance(event, Loaded)]
        works = [work(catalog, entry, settings, seed) for seed in range(seeds)]
        return told, [(await make(engine, each)).image.data for each in works]
    finally:
        await engine.close()


def work(catalog: Catalog, entry: Entry, settings: Settings, seed: int) -> Generate:
    request, warnings = parse_request(
        {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, "size": "128x128"}
    )
    return plan(request, entry, settings, "generation", warnings).spec


@pytest.fixture
async def widened(tmp_path: Path) -> Path:
    """The embedded model with the same weights in F32.

    The original's are quantised, for which ggml rounds activations to 8 bits, where ours widen the weights.
    """
    return await converted(tmp_path / "widened.gguf", "f32")


@pytest.fixture
async def of_four_bits(tmp_path: Path) -> Path:
    """The embedded model in a type that all kernels for int8 multiply as bytes."""
    return await converted(tmp_path / "q4_0.gguf", "q4_0")


async def converted(target: Path, weights: WeightType) -> Path:
    """The embedded model with weights of another type."""
    catalog, default = choose_models(Settings(model="embedded"))
    engine = EngineProcess()
    try:
        source = catalog.paths(catalog.get(default))["model"]
        async for _ in engine.run(Convert(source, target, weights, "", None)):
            pass
    finally:
        await engine.close()
    return target


async def test_pictures_are_like_those_without(seeds: int, widened: Path) -> None:
    """And are the same bytes with one, two and three threads, and when they are drawn again."""
    told, plain = await drawn("off", 1, seeds, widened)
    assert told == ""
    told, ours = await drawn("auto", 1, seeds)
    assert told == kernels_here("auto")
    assert not told or min(psnr(*pair) for pair in zip(plain, ours, strict=True)) >= LEAST_PSNR
    for threads in (1, 2, 3):
        assert await drawn("auto", threads, 1) == (told, ours[:1])


async def upscaled(kernels: Kernels, command: Upscale) -> bytes:
    """By a worker with these kernels, which a load brings."""
    settings = Settings(model="embedded", kernels=kernels)
    catalog, default = choose_models(settings)
    entry = catalog.get(default)
    engine = EngineProcess()
    try:
        async for _ in engine.load(model_spec(entry, catalog.paths(entry), {}, settings, 1)):
            pass
        (made,) = [event.artifact async for event in engine.run(command) if isinstance(event, Made)]
        return made.data
    finally:
        await engine.close()


async def test_upscaled_pictures_are_like_those_without(tmp_path: Path) -> None:
    """An upscaler that repeats each pixel has noise come out as it was, twice as large."""
    noise = np.random.default_rng(0).integers(0, 256, (72, 50, 3), np.uint8)
    image = RawImage(50, 72, 3, noise.tobytes())
    command = Upscale(write_upscaler(tmp_path / "double.gguf", 2), image, 0, 1)
    repeated = noise.repeat(2, axis=0).repeat(2, axis=1).tobytes()
    for kernels in ("off", "auto"):
        assert psnr(await upscaled(kernels, command), repeated) >= LEAST_PSNR


async def test_what_is_asked_for_is_used() -> None:
    """Where the CPU cannot do it, what is nearest; the worker tells which."""
    told, _ = await drawn("f32", 1, 0)
    assert told == kernels_here("f32")
    assert told.endswith("f32") or not told
    assert kernels_here("off") == ""


async def test_int8_draws_nearly_the_same(of_four_bits: Path) -> None:
    """Other bytes where there are kernels for it, but the same with any number of threads."""
    _, plain = await drawn("f32", 1, 1, of_four_bits)
    told, ours = await drawn("int8", 1, 1, of_four_bits)
    assert told == kernels_here("int8")
    assert not told or psnr(plain[0], ours[0]) >= LEAST_PSNR_INT8
    assert "int8" not in told or ours != plain
    assert await drawn("int8", 3, 1, of_four_bits) == (told, ours)
