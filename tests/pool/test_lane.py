"""Memory decides who stays: models make room, and what cannot fit is refused before it is loaded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from msgspec.structs import replace

from gguf_imagegen.catalog.catalog import Catalog, load_catalog
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.machine.memory import Available
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.pool.failures import CRASHES, NoRoomYet
from gguf_imagegen.pool.lane import Lane
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import Cancelled, InsufficientMemory
from gguf_imagegen.vocabulary.events import Loaded, Loading
from gguf_imagegen.vocabulary.waits import USUAL, Waits
from tests.fake_engines import QuickEngine

PLENTY = 10**12

Found = TypeVar("Found")


class Machine:
    """A machine on which each loaded model takes 100 MB of what is free."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.engines: list[QuickEngine] = []

    def engine(self) -> QuickEngine:
        self.engines.append(QuickEngine())
        return self.engines[-1]

    def available(self) -> Available:
        return Available(self.free - 100_000_000 * sum(engine.alive for engine in self.engines))


def ignore(event: Loading | Loaded) -> None:
    """Nobody follows these loads."""


class Home:
    """The models of one machine."""

    def __init__(self, machine: Machine, catalog: Catalog, settings: Settings, waits: Waits) -> None:
        self.machine = machine
        self.catalog = catalog
        self.lane = Lane(catalog, settings, machine.engine, Device(), machine.available, waits=waits)

    async def load(self, name: str) -> None:
        async with self.lane.loaded(self.catalog.get(name), ignore):
            pass

    @property
    def loaded(self) -> list[str]:
        return [entry.id for entry in self.lane.entries]


@asynccontextmanager
async def on(
    machine: Machine, model_dir: Path, tmp_path: Path, *, waits: Waits = USUAL, **given: Any
) -> AsyncIterator[Home]:
    files = {"model": "tiny-random.gguf", "taesd": "tiny-random-tae.gguf"}
    fields = {"family": "ovis-image", "files": files, "defaults": {"size": "128x128"}}
    extra = tmp_path / "two.yaml"
    extra.write_text(yaml.safe_dump({"version": 1, "models": {"a": fields, "b": fields}}))
    catalog = load_catalog(model_dir, extra)
    settings = Settings(models_dir=model_dir, max_loaded=8, **given)
    home = Home(machine, catalog, settings, waits)
    try:
        yield home
    finally:
        await home.lane.close("done")


async def test_models_stay_while_memory_lasts(model_dir: Path, tmp_path: Path) -> None:
    """With memory for both, both stay."""
    async with on(Machine(PLENTY), model_dir, tmp_path) as home:
        await home.load("a")
        await home.load("b")
        assert home.loaded == ["b", "a"]


async def test_another_decoder_loads_the_model_again(model_dir: Path, tmp_path: Path) -> None:
    """One model is in memory once; the same decoder again finds it there."""
    async with on(Machine(PLENTY), model_dir, tmp_path) as home:
        entry = home.catalog.get("a")
        for decoder, loads in (("full", 1), ("tiny", 2), ("tiny", 2), ("full", 3)):
            wanted, notes = parse_request({"prompt": "x", "decoder": decoder})
            chosen = plan(wanted, entry, Settings(), "generation", notes).entry
            async with home.lane.loaded(chosen, ignore):
                pass
            assert (len(home.machine.engines), home.loaded) == (loads, ["a"])
            assert home.machine.engines[-1].model.decoder == decoder
            assert home.lane.holds(entry)


async def test_a_model_makes_room_where_memory_is_short(model_dir: Path, tmp_path: Path) -> None:
    """The first model leaves when the second does not fit beside it."""
    async with on(Machine(PLENTY), model_dir, tmp_path) as home:
        await home.load("a")
        home.machine.free = 260_000_000
        await home.load("b")
        assert home.loaded == ["b"]


async def test_what_cannot_fit_is_refused(model_dir: Path, tmp_path: Path) -> None:
    """No engine is started for a model that does not fit into an empty machine."""
    machine = Machine(10_000_000)
    async with on(machine, model_dir, tmp_path) as home:
        with pytest.raises(
            InsufficientMemory, match=r"'a' needs about \d+ MB of memory.*10 MB that are free"
        ):
            await home.load("a")
    assert machine.engines == []


async def test_the_budget_bounds_a_single_model(model_dir: Path, tmp_path: Path) -> None:
    """A model whose files alone are beyond it is refused, and the one in memory stays."""
    machine = Machine(PLENTY)
    async with on(machine, model_dir, tmp_path, memory_budget_mb=1) as home:
        words = r"'a' have 17 MB, and --memory-budget-mb allows 1 MB .*--memory-budget-mb 1[78] or more"
        with pytest.raises(InsufficientMemory, match=words):
            await home.load("a")
    assert machine.engines == []


async def test_room_to_decode_is_made_before(model_dir: Path, tmp_path: Path) -> None:
    """Other models leave for a picture that is to be decoded whole; the work itself is never changed."""
    async with on(Machine(PLENTY), model_dir, tmp_path) as home:
        request, notes = parse_request({"prompt": "x", "size": "1024x1024"})
        spec = plan(request, home.catalog.get("a"), Settings(), "generation", notes).spec
        await home.load("b")
        async with home.lane.loaded(home.catalog.get("a"), ignore) as model:
            await home.lane.make_room_to_decode(model, spec)
            assert home.loaded == ["a", "b"]
            home.machine.free = 2_450_000_000
            await home.lane.make_room_to_decode(model, spec)
            assert home.loaded == ["a"]
            home.machine.free = 150_000_000
            await home.lane.make_room_to_decode(model, replace(spec, vae_tiling=True))
            with pytest.raises(NoRoomYet, match="decoding 1024x1024 takes more memory than is free") as full:
                await home.lane.make_room_to_decode(model, spec)
            assert (full.value.in_tiles, home.loaded) == (True, ["a"])


async def test_crashes_in_a_row_are_followed_by_a_pause(model_dir: Path, tmp_path: Path) -> None:
    """It passes by itself; a job that goes well in between begins the count anew."""
    async with on(Machine(PLENTY), model_dir, tmp_path, waits=Waits(crash_pause=0.5)) as home:
        for _ in range(CRASHES - 1):
            home.lane.crashes.add()
        home.lane.crashes.job_succeeded()
        for crash in range(CRASHES):
            assert home.lane.pause == 0, crash
            home.lane.crashes.add()
        assert 0 < home.lane.pause <= 0.5
        deadline = time.monotonic() + 60
        while home.lane.pause:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_only_an_engine_that_lives_is_ready(model_dir: Path, tmp_path: Path) -> None:
    """With the model as it is wanted, its decoder included; any will do where none is wanted."""
    async with on(Machine(PLENTY), model_dir, tmp_path) as home:
        a, b = home.catalog.get("a"), home.catalog.get("b")
        assert not home.lane.ready(None)
        await home.load("a")
        other = a.model_copy(update={"decoder": "tiny"})
        assert [home.lane.ready(entry) for entry in (a, b, other, None)] == [True, False, False, True]
        await home.machine.engines[0].close()
        assert [home.lane.ready(entry) for entry in (a, None)] == [False, False]


@pytest.mark.parametrize("slow", ["headers", "memory"])
async def test_a_load_is_given_up_before_it_has_an_engine(
    slow: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the files or the free memory are looked at, for however long: no engine is started."""
    asked, answered = threading.Event(), threading.Event()

    def held(look: Callable[..., Found]) -> Callable[..., Found]:
        def hold(*of: Any) -> Found:
            asked.set()
            answered.wait()
            return look(*of)

        return hold

    machine = Machine(PLENTY)
    if slow == "memory":
        monkeypatch.setattr(machine, "available", held(machine.available))
    async with on(machine, model_dir, tmp_path) as home:
        if slow == "headers":
            monkeypatch.setattr(home.catalog, "checked_files", held(home.catalog.checked_files))
        loading = asyncio.create_task(home.load("a"))
        await asyncio.to_thread(asked.wait)
        await home.lane.kill()
        try:
            with pytest.raises(Cancelled):
                await asyncio.wait_for(loading, 5)
            assert (machine.engines, home.lane.loading) == ([], None)
        finally:
            answered.set()
        await home.load("a")
        assert home.loaded == ["a"]
