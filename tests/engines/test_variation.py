"""Variation seeds on the real engine: how much of another seed's noise is in a picture, and where."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import pytest_asyncio
from msgspec.structs import replace

from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Generate, Hires, LoadSpec, Role, Variation
from gguf_imagegen.vocabulary.errors import GenerationFailed
from tests.engines.test_process import GRADIENT, RIGHT_HALF, SHARES_ALWAYS, SPEC, images, loaded

pytestmark = pytest.mark.posix

OTHER = 9
CASES: dict[str, dict[str, Any]] = {
    "text": {},
    "ancestral": {"sampler": "euler_a"},
    "image": {"init_image": GRADIENT},
    "mask": {"init_image": GRADIENT, "mask": RIGHT_HALF},
    "latent": {"hires": Hires(128, 128, 3, 0.6, "latent", None)},
    "pixels": {"hires": Hires(128, 128, 3, 0.6, "lanczos", None), "sampler": "euler_a"},
}
UNPATCHED = """
from gguf_imagegen.engines.sdcpp import variation, worker
variation.VARIATIONS = "no_such_function"
worker.main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadSpec:
    files = cast("dict[Role, Path]", write_test_model(tmp_path_factory.mktemp("model")))
    return LoadSpec("test", files, threads=1)


@pytest_asyncio.fixture(scope="module")
async def engine(model: LoadSpec) -> AsyncIterator[EngineProcess]:
    async with loaded(model) as process:
        yield process


def varied(spec: Generate, strength: float) -> Generate:
    return replace(spec, variation=Variation(OTHER, strength))


async def drawn(engine: EngineProcess, spec: Generate) -> list[RawImage]:
    return [made.artifact for made in await images(engine, spec)]


def distance(one: RawImage, other: RawImage) -> float:
    """Of 255, between pixels."""
    first, second = (np.frombuffer(each.data, np.uint8).astype(int) for each in (one, other))
    return float(np.abs(first - second).mean())


@pytest.mark.parametrize("case", CASES)
async def test_a_picture_goes_steadily_over_into_the_other(engine: EngineProcess, case: str) -> None:
    """Next to nothing of it changes next to nothing, noise of the steps included; all of it is the other."""
    spec = replace(SPEC, **CASES[case])
    (own,) = await drawn(engine, spec)
    found = {strength: (await drawn(engine, varied(spec, strength)))[0] for strength in (1e-4, 0.2, 0.5, 1.0)}
    away = [distance(own, picture) for picture in found.values()]
    assert away == sorted(away)
    assert away[0] < 0.1 < away[1] < away[2]
    assert [found[1.0]] == await drawn(engine, replace(spec, seed=OTHER))
    assert [found[0.5]] == await drawn(engine, varied(spec, 0.5))
    assert [own] == await drawn(engine, spec), "the next picture is free of it"


async def test_the_pictures_of_a_job(engine: EngineProcess, model: LoadSpec) -> None:
    """Have one seed, and the noise of one after the other; also where one call makes them all."""
    spec = replace(varied(SPEC, 0.3), sampler="euler_a", n=3)
    alone = [
        *await drawn(engine, replace(spec, n=1)),
        *await drawn(engine, replace(spec, n=1, variation=Variation(OTHER + 1, 0.3))),
        *await drawn(engine, replace(spec, n=1, variation=Variation(OTHER + 2, 0.3))),
    ]
    assert await drawn(engine, spec) == alone
    assert await drawn(engine, replace(spec, first=2)) == alone[2:]
    whole = await drawn(engine, replace(spec, variation=Variation(OTHER, 1.0)))
    assert whole == await drawn(engine, replace(spec, seed=OTHER, variation=None))
    async with loaded(model, (sys.executable, "-c", SHARES_ALWAYS)) as sharing:
        assert [await drawn(sharing, spec) for _ in range(2)] == [alone, alone]
        assert await drawn(sharing, replace(spec, variation=Variation(OTHER, 1.0))) == whole


async def test_an_engine_without_the_patch_says_so(model: LoadSpec) -> None:
    """As that of another machine may be; it draws everything else."""
    async with loaded(model, (sys.executable, "-c", UNPATCHED)) as engine:
        with pytest.raises(GenerationFailed, match=r"cannot mix the noise of two seeds; scripts/install"):
            await drawn(engine, varied(SPEC, 0.5))
        assert await drawn(engine, varied(SPEC, 1.0)) == await drawn(engine, replace(SPEC, seed=OTHER))
