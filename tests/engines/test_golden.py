"""The golden picture decides which of several builds is used, and each build draws it once."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.engines.sdcpp import golden
from gguf_imagegen.engines.sdcpp.choice import NONE_RIGHT, Record, best
from gguf_imagegen.engines.sdcpp.golden import GGMLS, OURS, Likeness, likeness
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.machine.levels import Level
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import LoadSpec, Task
from gguf_imagegen.vocabulary.errors import WorkerCrashed
from gguf_imagegen.vocabulary.events import Done, EngineEvent, Loaded, Made, Timings
from tests.fake_engines import QuickEngine

V4, V3, V2 = (Level(name, Path(f"/lib/{name}.so")) for name in ("v4", "v3", "v2"))


class Draws(QuickEngine):
    """Draws a picture from a file, with kernels of ours or without."""

    def __init__(self, picture: Path, kernels: str) -> None:
        super().__init__()
        self._picture, self._kernels = picture, kernels

    async def load(self, model: LoadSpec) -> AsyncIterator[EngineEvent]:
        yield Loaded(0.0, "fake", "CPU", self._kernels)

    async def run(self, task: Task) -> AsyncIterator[EngineEvent]:
        with Image.open(self._picture) as image:
            width, height = image.size
            yield Made(0, RawImage(width, height, 3, image.tobytes()), Timings(0, 0, 0, 0, 4))
        yield Done()


class Crashes(QuickEngine):
    async def load(self, model: LoadSpec) -> AsyncIterator[EngineEvent]:
        yield Loaded(0.0, "fake", "CPU")
        raise WorkerCrashed("The engine stopped unexpectedly (SIGILL).")


@pytest.mark.parametrize(
    ("picture", "kernels", "right"),
    [(OURS, "AVX2 f32", True), (GGMLS, "", True), (OURS, "", False), (GGMLS, "AVX512 bf16", False)],
)
async def test_each_kind_of_kernels_has_its_picture(picture: Path, kernels: str, right: bool) -> None:
    """ggml's own code rounds what ours does not, so that each is compared with its like."""
    assert (await likeness(Draws(picture, kernels), 1)).right is right


async def test_a_build_that_ends_its_process() -> None:
    """Is wrong, and says why."""
    found = await likeness(Crashes(), 1)
    assert not found.right
    assert "SIGILL" in found.words


async def test_the_engine_here_draws_it() -> None:
    """The real one, as it was compiled: the pictures in the package are those of the embedded model."""
    found = await likeness(EngineProcess(), usable_cores())
    assert found.right, found.words


def test_the_first_that_is_right_is_used() -> None:
    """And the others are not even tried."""
    tried: list[Path] = []

    def check(library: Path) -> Likeness:
        tried.append(library)
        return Likeness(65.2)

    assert best([V4, V3, V2], check) == (V4, "the best for this CPU, 65 dB from the golden picture")
    assert tried == [V4.library]


def test_a_wrong_one_falls_back_a_level(caplog: pytest.LogCaptureFixture) -> None:
    """Told why, in the log too; where none is right the lowest is used."""
    found = {V4.library: Likeness(fault="it crashed"), V3.library: Likeness(12.0), V2.library: Likeness(50.0)}
    level, why = best([V4, V3, V2], found.__getitem__)
    assert level is V2
    assert why == ("50 dB from the golden picture; not v4: it crashed; not v3: 12 dB from the golden picture")
    assert "the engine's build for v4 is not used: it crashed" in caplog.text
    level, why = best([V3, V2], lambda library: Likeness(1.0))
    assert level is V2
    assert why.startswith(f"{NONE_RIGHT}; not v3: 1 dB")


def test_each_library_is_checked_once(tmp_path: Path) -> None:
    """By its bytes, over starts; one that drew nothing is tried again."""
    library, path = tmp_path / "lib.so", tmp_path / "state" / "engine-checks.json"
    checks: list[Likeness] = [Likeness(fault="no memory"), Likeness(61.234), Likeness(20.0)]

    def start() -> Likeness:
        with Record(path) as record:
            return record.remembered(lambda _: checks.pop(0))(library)

    library.write_bytes(b"one")
    assert start().fault == "no memory"
    assert not path.exists()
    assert start() == Likeness(61.234)
    assert start() == Likeness(61.23)
    library.write_bytes(b"another")
    assert start() == Likeness(20.0)
    assert start() == Likeness(20.0), "a wrong one stays wrong"
    assert list(json.loads(path.read_text())["libraries"].values()) == [61.23, 20.0]
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "[]", '{"golden": "of an older model", "libraries": {"a": 99}}'])
def test_a_record_that_holds_no_longer(text: str, tmp_path: Path) -> None:
    """Is as if there was none."""
    (tmp_path / "record").write_text(text)
    (tmp_path / "lib.so").touch()
    with Record(tmp_path / "record") as record:
        assert record.remembered(lambda _: Likeness(50.0))(tmp_path / "lib.so") == Likeness(50.0)
    assert json.loads((tmp_path / "record").read_text())["golden"] == golden.digest()


def test_nothing_is_kept_where_nothing_may_be(tmp_path: Path) -> None:
    """`--ephemeral`, and a folder that cannot be written."""
    (tmp_path / "lib.so").touch()
    for path in (None, Path("/proc/engine-checks.json")):
        with Record(path) as record:
            assert record.remembered(lambda _: Likeness(50.0))(tmp_path / "lib.so").right
