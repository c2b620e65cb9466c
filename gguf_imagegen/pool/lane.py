"""A lane: a device that computes one job at a time, and the models in memory, each in an engine of its own.

It loads models, makes room for them, remembers what failed, and ends engines.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.quants import Survey
from gguf_imagegen.catalog.store import size_words
from gguf_imagegen.catalog.verdict import must_tile, refusal, verdict_of
from gguf_imagegen.machine import memory
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.machine.memory import Available, available
from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.planning.load_spec import model_spec
from gguf_imagegen.pool.failures import Crashes, Failures, NoRoomYet
from gguf_imagegen.pool.loaded_model import LoadedModel
from gguf_imagegen.pool.neighbour import Neighbour
from gguf_imagegen.pool.options import Options
from gguf_imagegen.pool.tunings import Tunings
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Engine, Generate, LoadSpec, Role
from gguf_imagegen.vocabulary.errors import Cancelled, ImagegenError, InsufficientMemory
from gguf_imagegen.vocabulary.events import Loaded, Loading
from gguf_imagegen.vocabulary.waits import USUAL, Waits

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Lane:
    """At most `max_loaded` models, each in an engine of its own; the least recently used makes room.

    Not re-entrant: the scheduler alone gives it work, one at a time, so no model leaves under a job.
    The lanes of a machine share `turn`, in which they load one after the other, and `failures`; `beside`
    gives them, this lane included.
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
        waits: Waits = USUAL,
    ) -> None:
        self.device = device
        self.loading: Loading | None = None
        self.used = 0.0
        """When work for a model began here last (monotonic clock)."""
        self.failures = failures or Failures(waits.failed_load)
        self.ended: Callable[[str], None] = lambda why: None
        self._catalog = catalog
        self._settings = settings
        self._make_engine = make_engine
        self._free = free or functools.partial(available, gpu=device.gpu)
        self._whole = whole or functools.partial(memory.whole, gpu=device.gpu)
        self.on_gpu = {"cpu": False, "auto": None}.get(device.kind, True)
        """Whether engines here compute on a GPU with memory of its own; None before the first load tells."""
        self._turn = turn or asyncio.Lock()
        self._beside = beside
        self.crashes = Crashes(waits.crash_pause)
        self._neighbour = Neighbour(settings.before_load)
        self._tunings = Tunings(catalog.models_dir, settings.kernels)
        self._models: list[LoadedModel] = []  # the most recently used is the last
        self._being_loaded = ""  # the name of the model that `loading` is about
        self._starting: Engine | None = None
        self._held: Engine | None = None  # by whoever is inside `loaded` or `without_model`
        self._killed = asyncio.Event()  # since that began

    @property
    def name(self) -> str:
        return self.device.name

    @property
    def entries(self) -> list[Entry]:
        """The loaded models, the most recently used first."""
        return [model.entry for model in reversed(self._models)]

    @property
    def backend(self) -> str | None:
        return self._models[-1].backend if self._models else None

    @property
    def kernels(self) -> str | None:
        """Ours that the engine used last has in use on the CPU; "" for none."""
        return self._models[-1].kernels if self._models else None

    @property
    def models(self) -> Sequence[LoadedModel]:
        """The least recently used first."""
        return self._models

    @property
    def held(self) -> bool:
        """Whether a job or a load has hold of this lane, so that its models stay."""
        return self._held is not None or self._starting is not None

    @property
    def present(self) -> bool:
        return bool(self._models or self._starting)

    def holds(self, entry: Entry) -> bool:
        return self._model(entry) is not None

    def ready(self, entry: Entry | None) -> bool:
        """Whether an engine lives that has this model as it is wanted, decoder and all; None: any engine."""
        return any(
            model.engine.alive and (entry is None or model.entry.serves(entry)) for model in self._models
        )

    @property
    def being_loaded(self) -> str:
        """The name of the model that is being loaded just now; empty for none."""
        return self._being_loaded

    def loads(self, entry: Entry) -> bool:
        return self._being_loaded == entry.name

    def tuned(self, entry: Entry) -> Options | None:
        """What a tuning has changed in a loaded model; None if it is not loaded, or has no tuning."""
        model = self._model(entry)
        return model.tuned if model else None

    def _model(self, entry: Entry) -> LoadedModel | None:
        """The one with this model, even if it is to be loaded otherwise."""
        return next((model for model in self._models if model.entry.name == entry.name), None)

    @property
    def next_expiry(self) -> float | None:
        """Seconds until a model has been idle for its time, None if none ever will be."""
        soonest = min((model.expires for model in self._models), default=math.inf)
        return None if soonest == math.inf else max(0.0, soonest - time.monotonic())

    @asynccontextmanager
    async def loaded(
        self, entry: Entry, tell: Callable[[Loading | Loaded], None], keep_alive: float | None = None
    ) -> AsyncIterator[LoadedModel]:
        """Hold this model, which is loaded first if need be; `kill` ends its engine as long as it is held."""
        self._killed.clear()
        model = await self._found_or_loaded(entry, tell)
        self._models = [other for other in self._models if other is not model] + [model]
        model.keep_alive = self._settings.keep_alive if keep_alive is None else keep_alive
        self._held, model.used = model.engine, time.monotonic()
        self.used = model.used
        try:
            yield model
        finally:
            self._held = None

    @asynccontextmanager
    async def without_model(self) -> AsyncIterator[Engine]:
        """Hold an engine for work that needs no model: the one used last, else one for this work alone."""
        self._killed.clear()
        model = next((model for model in reversed(self._models) if model.engine.alive), None)
        self._held = model.engine if model else None
        self._starting = None if model else self._make_engine()
        try:
            yield model.engine if model else cast(Engine, self._starting)
        finally:
            self._held = None
            await self._end_starting("idle")

    async def _found_or_loaded(self, entry: Entry, tell: Callable[[Loading | Loaded], None]) -> LoadedModel:
        model = self._model(entry)
        if model is not None and not (model.engine.alive and model.entry.serves(entry)):
            await self.close("switched" if model.engine.alive else "crashed", entry)
            model = None
        if model is None:
            self.failures.refuse_hopeless(entry)
            model = await self._load(entry, tell)
        return model

    async def _load(self, entry: Entry, tell: Callable[[Loading | Loaded], None]) -> LoadedModel:
        self.loading, self._being_loaded = Loading(entry.id, 0, 0), entry.name
        try:
            headers = await self._in_thread(lambda: self._catalog.checked_files(entry))
            async with self._turn_to_load():
                model = await self._started(entry, headers, tell)
                self._models.append(model)
                self._starting = None
        except ImagegenError as exc:
            if self._killed.is_set():  # whatever the engine said at its end
                raise Cancelled("the load was cancelled") from exc
            self.failures.add(entry, exc)
            raise
        else:
            self.failures.loaded(entry)
            return model
        finally:
            self.loading, self._being_loaded = None, ""

    @asynccontextmanager
    async def _turn_to_load(self) -> AsyncIterator[None]:
        """What is measured as free must not be given away twice."""
        await self._unless_killed(self._turn.acquire(), self._turn.release)
        try:
            yield
        finally:
            self._turn.release()

    async def _started(
        self, entry: Entry, headers: Mapping[Role, Header], tell: Callable[[Loading | Loaded], None]
    ) -> LoadedModel:
        """The model in an engine of its own, for which there is room."""
        await self._unless_killed(self._neighbour.ask())
        await self._make_room(entry, headers)
        await self._end_starting("failed")
        spec, tuned = await self._in_thread(lambda: self._tuned_spec(entry, headers))
        self._starting = self._make_engine()
        model = LoadedModel(entry, self._starting, headers, tuned=tuned)
        async for event in model.engine.load(spec):
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
                raise NoRoomYet(refused) if len(self._beside()) > 1 else refused

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

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        """What a thread finds out; a slow disk may hold up the thread, and must not hold up `kill`."""
        return await self._unless_killed(asyncio.to_thread(work))

    async def _unless_killed(
        self, work: Coroutine[Any, Any, Result], undo: Callable[[], None] = lambda: None
    ) -> Result:
        """`kill` ends the wait for this; `undo` is called if it was done in that very moment."""
        working = asyncio.create_task(work)
        killed = asyncio.create_task(self._killed.wait())
        try:
            await asyncio.wait((working, killed), return_when=asyncio.FIRST_COMPLETED)
            self._go_on()
            return await working
        except BaseException:
            if working.done() and not working.cancelled() and working.exception() is None:
                undo()
            raise
        finally:
            working.cancel()
            killed.cancel()

    def _go_on(self) -> None:
        """A load that nobody waits for any more ends here, before it has an engine."""
        if self._killed.is_set():
            raise Cancelled("the load was cancelled")

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

    @property
    def pause(self) -> float:
        """Seconds for which no engine should be started, because of crashes in a row."""
        return self.crashes.pause

    async def kill(self) -> None:
        """End the engine under a running command, or a load that has none yet; who awaits it sees it end."""
        self._killed.set()
        engine = self._starting or self._held
        if engine is not None:
            await engine.close()

    async def expire(self) -> None:
        """Close the models whose idle time is over."""
        now = time.monotonic()
        for model in [model for model in self._models if model.expires <= now]:
            await self.close("idle", model.entry)

    async def close(self, why: str, entry: Entry | None = None) -> None:
        """End the engine of this model, or all, and one that was starting; returns when they are gone.

        A load that was cancelled has not failed.
        """
        if why == "cancelled":
            self.failures.last = None
        ending = [model for model in self._models if entry is None or model.entry.name == entry.name]
        self._models = [model for model in self._models if model not in ending]
        for model in ending:
            await model.engine.close()
            self.ended(why)
        await self._end_starting(why)

    async def _end_starting(self, why: str) -> None:
        engine, self._starting = self._starting, None
        if engine is not None:
            await engine.close()
            self.ended(why)
