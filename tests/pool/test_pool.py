"""Lanes of one machine: they share memory, load by turns, and make equal pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from gguf_imagegen.catalog.catalog import Catalog, load_catalog
from gguf_imagegen.machine.devices import make_devices
from gguf_imagegen.pool.failures import NoRoomYet
from gguf_imagegen.pool.pool import Pool
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import Cancelled
from tests.api.client import eventually
from tests.fake_engines import QuickEngine
from tests.pool.test_lane import PLENTY, Machine, ignore


@asynccontextmanager
async def pool_on(
    machine: Machine, model_dir: Path, tmp_path: Path, *devices: str, **given: Any
) -> AsyncIterator[tuple[Pool, Catalog]]:
    files = {"model": "tiny-random.gguf", "taesd": "tiny-random-tae.gguf"}
    fields = {"family": "ovis-image", "files": files, "defaults": {"size": "128x128"}}
    extra = tmp_path / "two.yaml"
    extra.write_text(yaml.safe_dump({"version": 1, "models": {"a": fields, "b": fields}}))
    catalog = load_catalog(model_dir, extra)
    lanes = make_devices(devices or ("cpu",), 2, 1, 2, {})
    settings = Settings(models_dir=model_dir, **given)
    pool = Pool(catalog, settings, lambda device: machine.engine(), lanes, lambda device: machine.available())
    try:
        yield pool, catalog
    finally:
        await pool.close("done")


async def is_true(value: object) -> bool:
    return bool(value)


async def test_what_does_not_fit_beside_work_waits_for_it(model_dir: Path, tmp_path: Path) -> None:
    """While a lane has hold of its model; once it has not, that model leaves for the new one."""
    machine = Machine(PLENTY)
    async with pool_on(machine, model_dir, tmp_path) as (pool, catalog):
        a, b = catalog.get("a"), catalog.get("b")
        first, second = pool.lanes
        async with first.loaded(a, ignore):
            machine.free = 260_000_000
            with pytest.raises(NoRoomYet, match=r"'b' needs about \d+ MB of memory"):
                async with second.loaded(b, ignore):
                    pass
            assert (pool.entries, pool.errors, pool.error) == ([a], {}, None)
        async with second.loaded(b, ignore):
            assert (pool.entries, first.entries) == ([b], [])


async def test_one_loads_at_a_time(model_dir: Path, tmp_path: Path) -> None:
    """A load that waits for its turn can be cancelled, and gives up no turn that it never had."""

    class Gated(QuickEngine):
        opened = asyncio.Event()

        async def at_load(self) -> None:
            await self.opened.wait()

    class Gates(Machine):
        def engine(self) -> QuickEngine:
            self.engines.append(Gated())
            return self.engines[-1]

    machine = Gates(PLENTY)

    async def load(lane: int, name: str) -> None:
        async with pool.lanes[lane].loaded(catalog.get(name), ignore):
            pass

    async with pool_on(machine, model_dir, tmp_path) as (pool, catalog):
        first = asyncio.create_task(load(0, "a"))
        await eventually("a is loading", lambda: is_true(machine.engines))
        second = asyncio.create_task(load(1, "b"))
        await eventually("b waits for its turn", lambda: is_true(pool.lanes[1].being_loaded))
        await pool.lanes[1].kill()
        with pytest.raises(Cancelled):
            await second
        assert len(machine.engines) == 1
        Gated.opened.set()
        await first
        await load(1, "b")
        assert sorted(entry.id for entry in pool.entries) == ["a", "b"]


@pytest.mark.parametrize(
    ("devices", "given", "expected"),
    [
        (("cpu",), {}, None),
        (("cuda:0", "cuda:1"), {}, None),
        (("cuda:0", "cpu"), {}, False),
        (("cuda:0", "cpu"), {"flash_attention": True}, True),
    ],
)
async def test_pixels_do_not_depend_on_the_lane(
    devices: tuple[str, ...], given: dict[str, bool], expected: bool | None, model_dir: Path, tmp_path: Path
) -> None:
    """What each backend would choose for itself is chosen for all where they would choose differently."""
    machine = Machine(PLENTY)
    async with pool_on(machine, model_dir, tmp_path, *devices, **given) as (pool, catalog):
        for lane in pool.lanes:
            async with lane.loaded(catalog.get("a"), ignore):
                pass
    assert {engine.model.flash_attention for engine in machine.engines} == {expected}
    direct = None if expected is None else False
    assert {engine.model.vae_conv_direct for engine in machine.engines} == {direct}
    assert {engine.model.diffusion_conv_direct for engine in machine.engines} == {direct}
    assert len(machine.engines) == len(pool.lanes)
