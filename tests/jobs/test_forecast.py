"""Forecasts on machines that are too small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf_imagegen.catalog.catalog import load_catalog
from gguf_imagegen.jobs.estimates import Pace
from gguf_imagegen.jobs.forecast import Forecast, Forecaster
from gguf_imagegen.machine.devices import make_devices
from gguf_imagegen.machine.memory import Available
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.pool.pool import Pool
from gguf_imagegen.settings import Settings
from tests.fake_engines import QuickEngine

CATALOG = """\
version: 1
models:
  tiny-random:
    family: ovis-image
    files: {model: tiny-random.gguf, taesd: tiny-random-tae.gguf}
    limits: {max_side: 4096, max_pixels: 16777216}
"""


def forecast(model_dir: Path, tmp_path: Path, ram: int, **fields: Any) -> Forecast:
    """On a CPU with so much free memory."""
    extra = tmp_path / "catalog.yaml"
    extra.write_text(CATALOG)
    catalog, settings = load_catalog(model_dir, extra), Settings(models_dir=model_dir, kernels="off")
    lanes = make_devices(("cpu",), 1, 1, 1, {})
    pool = Pool(catalog, settings, lambda device: QuickEngine(), lanes, lambda device: Available(ram))
    request, _ = parse_request({"prompt": "a", **fields})
    made = plan(request, catalog.get("tiny-random"), settings, "generation", [])
    (found,) = Forecaster(catalog, settings, pool, Pace()).of([made])
    return found


def test_a_smaller_size_is_the_nearest_setting(model_dir: Path, tmp_path: Path) -> None:
    """The largest one that fits, of the same aspect; sent instead, it fits."""
    plenty = forecast(model_dir, tmp_path, 64_000_000_000, size="2048x1024")
    assert (plenty.fits, plenty.cheaper) == (True, None)
    assert plenty.room is not None
    ram = plenty.room.needs // 10  # so little that tiles do not help
    short = forecast(model_dir, tmp_path, ram, size="2048x1024")
    assert not short.fits
    assert short.cheaper is not None
    width, height = map(int, short.cheaper["size"].split("x"))
    assert width == 2 * height
    assert width < 2048
    assert forecast(model_dir, tmp_path, ram, **short.cheaper).fits


def test_tiles_come_before_less(model_dir: Path, tmp_path: Path) -> None:
    """A picture that fits if it is decoded in tiles is forecast so."""
    whole = forecast(model_dir, tmp_path, 64_000_000_000, size="1024x1024")
    assert whole.room is not None
    found = [
        forecast(model_dir, tmp_path, int(whole.room.needs * part / 100), size="1024x1024")
        for part in range(40, 140, 5)
    ]
    assert {each.tiles for each in found if each.room and each.room.tiling} == {16}
    assert {each.tiles for each in found if each.room and not each.room.tiling} == {1}


def test_nothing_fits(model_dir: Path, tmp_path: Path) -> None:
    """Then nothing is said to be cheaper."""
    found = forecast(model_dir, tmp_path, 1_000_000, size="64x64")
    assert (found.fits, found.cheaper) == (False, None)
