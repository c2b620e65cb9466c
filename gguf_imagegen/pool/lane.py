"""A lane of this machine: loads models, makes room for them, and decides how."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.quants import Survey
from gguf_imagegen.catalog.store import size_words
from gguf_imagegen.catalog.verdict import must_tile, refusal, verdict_of
from gguf_imagegen.machine import memory
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.machine.memory import Available, available
from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.pictures.finish import Finish
from gguf_imagegen.planning.load_spec import model_spec
from gguf_imagegen.pool import finishing
from gguf_imagegen.pool.base_lane import BaseLane, Tell
from gguf_imagegen.pool.failures import Failures, NoRoomYet
from gguf_imagegen.pool.loaded_model import LoadedModel
from gguf_imagegen.pool.neighbour import Neighbour
from gguf_imagegen.pool.options import Options
from gguf_imagegen.pool.tunings import Tunings
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Engine, Generate, LiveEngine, LoadSpec, Role
from gguf_imagegen.vocabulary.errors import InsufficientMemory
from gguf_imagegen.vocabulary.events import EngineEvent, Loaded, Loading, Made
from gguf_imagegen.vocabulary.waits import USUAL, Waits

log = logging.getLogger(__name__)


class Lane(BaseLane):
    """The least recently used model makes room.

    The lanes of a machine share `turn`, in which they load one after the other, and `failures`; `beside`
    gives them, this lane included. `elsewhere` is whether other machines may take what does not fit here.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        make_engine: Callable[[], Engine],
        device: Device,
        free: Callable[[], Available] | None = None,
        whole: Callable[[], Available] | None = None,
        *,
        turn: asyncio.Lock | None = None,
        failures: Failures | None = None,
        beside: Callable[[], Sequence[Lane]] = tuple,
        elsewhere: Callable[[], bool] = lambda: False,
        waits: Waits = USUAL,
    ) -> None:
        super().__init__(settings, device, failures or Failures(waits.failed_load), waits)
        self._catalog = catalog
        self._make_engine = make_engine
        self._free = free or functools.partial(available, gpu=device.gpu)
        self._whole = whole or functools.partial(memory.whole, gpu=device.gpu)
        self._turn = turn or asyncio.Lock()
        self._beside = beside
        self._elsewhere = elsewhere
        self._neighbour = Neighbour(settings.before_load)
        self._tunings = Tunings(catalog.models_dir, settings.kernels)

    def has(self, entry: Entry | None, addons: Sequence[Path] = ()) -> bool:
        """See `BaseLane`; requests name only add-ons that are on this machine."""
        return entry is None or self._catalog.on_disk(entry)

    def free(self) -> Available:
        """See `BaseLane`."""
        return self._free()

    def draw(self, model: LoadedModel, spec: Generate, finish: Finish) -> AsyncIterator[EngineEvent]:
        """See `BaseLane`."""
        return finishing.drawn(model.engine, spec, finish, self.device.threads)

    def enlarge(self, engine: LiveEngine, made: Made, finish: Finish) -> AsyncIterator[EngineEvent]:
        """See `BaseLane`."""
        return finishing.enlarged(engine, made, finish, self.device.threads)

    def _new_engine(self) -> Engine:
        return self._make_engine()

    async def _opened(self, entry: Entry, tell: Tell) -> LoadedModel:
        headers = await self._in_thread(lambda: self._catalog.checked_files(entry))
        async with self._turn_to_load():
            return await self._started(entry, headers, tell)

    @asynccontextmanager
    async def _turn_to_load(self) -> AsyncIterator[None]:
        """What is measured as free must not be given away twice."""
        await self._unless_killed(self._turn.acquire(), self._turn.release)
        try:
            yield
        finally:
            self._turn.release()

    async def _started(self, entry: Entry, headers: Mapping[Role, Header], tell: Tell) -> LoadedModel:
        """The model in an engine of its own, for which there is room."""
        await self._unless_killed(self._neighbour.ask())
        await self._make_room(entry, headers)
        await self._end_starting("failed")
        spec, tuned = await self._in_thread(lambda: self._tuned_spec(entry, headers))
        self._starting = engine = self._make_engine()
        model = LoadedModel(entry, engine, headers, tuned=tuned)
        async for event in engine.load(spec):
            match event:
                case Loading():
                    self.loading = event
                    tell(event)
                case Loaded(seconds=seconds, backend=backend, kernels=kernels):
                    model.settle(spec, backend, kernels)
                    self.on_gpu = backend != "CPU"
                    tell(event)
                    log.info("model %s loaded in %.1f s on %s", entry.id, seconds, model.words)
        return model

    def _tuned_spec(self, entry: Entry, headers: Mapping[Role, Header]) -> tuple[LoadSpec, Options | None]:
        """As the settings say; where they are silent, a tuning of this model on this machine decides.

        A lane that has the model already decides for the others: options may change pixels a little.
        """
        paths = self._catalog.paths(entry)
        spec = model_spec(entry, paths, headers, self._settings, self.device.threads)
        for model in (found for lane in self._beside() if lane is not self and (found := lane._model(entry))):
            return (model.tuned.applied(spec) if model.tuned else spec), model.tuned
        tuning = self._tunings.find(entry.name, paths) if self._settings.tuning else None
        if tuning is None:
            return spec, None
        options = tuning.options.unless_said(entry.engine.over(self._settings))
        if len(self._beside()) > 1:  # it was measured with the whole machine
            options = options.model_copy(update={"threads": None})
        return options.applied(spec), options

    async def _make_room(self, entry: Entry, headers: Mapping[Role, Header]) -> None:
        """Close the least recently used models until the new one is within the bounds and fits.

        Those of this lane leave first, then those of lanes that have nothing to do.
        """
        need, budget = self._catalog.size_on_disk(entry), self._settings.memory_budget_mb * 1e6
        if budget and need > budget:
            raise InsufficientMemory(
                f"the files of model {entry.name!r} have {size_words(need)}, and --memory-budget-mb allows"
                f" {size_words(budget)} for all loaded models: take a smaller model, or start the server with"
                f" --memory-budget-mb {math.ceil(need / 1e6)} or more",
                param="model",
            )
        while len(self._models) >= self._settings.max_loaded:
            await self.close("switched", self._models[0].entry)
            self._go_on()
        while budget and need + self._loaded_bytes() > budget:
            if not await self._one_leaves(everywhere=True):
                words = f"model {entry.name!r} is not loaded: --memory-budget-mb is used up by others"
                raise NoRoomYet(InsufficientMemory(words, param="model"))
            self._go_on()
        while self._settings.memory_check:
            free = await self._in_thread(self._free)
            found = verdict_of(entry, headers, self._settings, free)
            if found.fits:
                return
            if await self._one_leaves():
                continue
            if self._neighbour.leaving:
                await self._unless_killed(asyncio.sleep(0.1))
            else:
                survey = Survey(self._catalog, self._settings, free)
                better = await self._in_thread(functools.partial(survey.next_best, entry))
                refused = refusal(entry, found, better)
                raise NoRoomYet(refused) if len(self._beside()) > 1 or self._elsewhere() else refused

    def _loaded_bytes(self) -> int:
        """Files of the loaded models of all lanes that share main memory."""
        lanes = self._beside() or (self,)
        return sum(self._catalog.size_on_disk(model.entry) for lane in lanes for model in lane.models)

    async def _one_leaves(self, *, everywhere: bool = False, but: LoadedModel | None = None) -> bool:
        """Close one model that no job has hold of; False if there is none in this memory, or anywhere."""
        near = [lane for lane in self._beside() if everywhere or lane.device.gpu == self.device.gpu]
        idle = [lane for lane in near if lane is not self and not lane.held]
        own = [(self, model) for model in self._models[:2] if model is not but][:1]
        found = own or [(lane, model) for lane in idle for model in lane.models]
        if not found:
            return False
        lane, model = min(found, key=lambda each: each[1].used)
        await lane.close("switched", model.entry)
        return True

    def must_tile(self, entry: Entry, headers: Mapping[Role, Header], width: int, height: int) -> bool:
        """Whether such a picture could not be decoded whole here if nothing else were in memory."""
        return must_tile(entry, headers, self._settings, width, height, self._whole(), self.on_gpu)

    async def make_room_to_decode(self, model: LoadedModel, spec: Generate) -> None:
        """Close other models until this work can be decoded as it says; NoRoomYet if that is not enough."""
        while self._settings.memory_check and not spec.vae_tiling:
            free = await asyncio.to_thread(self._free)
            width, height = spec.decoded
            if not model.needs_tiling(width, height, free):
                return
            if not await self._one_leaves(but=model):
                words = f"decoding {width}x{height} takes more memory than is free; ask for vae_tiling"
                raise NoRoomYet(InsufficientMemory(words), in_tiles=True)
