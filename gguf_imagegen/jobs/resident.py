"""The models that are in memory: loading them, making room, remembering what failed, closing them."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.fit import Available, available
from gguf_imagegen.catalog.header import Header
from gguf_imagegen.catalog.room import needs_tiling, refusal, verdict_of
from gguf_imagegen.catalog.store import size_words
from gguf_imagegen.catalog.survey import Survey
from gguf_imagegen.engine.protocol import Engine, GenerateSpec, ModelSpec, Role
from gguf_imagegen.errors import (
    Cancelled,
    ImagegenError,
    InsufficientMemory,
    ModelLoadFailed,
)
from gguf_imagegen.events import Loaded, Loading
from gguf_imagegen.jobs.model_spec import model_spec
from gguf_imagegen.settings import Settings
from gguf_imagegen.tuning.options import Options
from gguf_imagegen.tuning.record import Tunings

log = logging.getLogger(__name__)

CRASHES = 3
"""So many crashes within CRASH_WINDOW seconds, and nothing is started for the next BREAK seconds."""
CRASH_WINDOW = 60.0
BREAK = 15.0
RETRY_FAILED_LOAD = 15.0
"""Seconds for which a model that failed to load is not tried again."""

Result = TypeVar("Result")


@dataclass(eq=False)
class Slot:
    """One engine with its model; `used` is when it was last asked for, on the monotonic clock.

    `tuned` is what was loaded otherwise than by default, because a tuning says so; None without a tuning.
    """

    entry: Entry
    engine: Engine
    headers: Mapping[Role, Header]
    backend: str = ""
    tuned: Options | None = None
    keep_alive: float = -1
    used: float = 0.0

    @property
    def expires(self) -> float:
        return self.used + self.keep_alive if self.keep_alive >= 0 else math.inf


class Resident:
    """At most `max_loaded` models, each in an engine of its own; the least recently used makes room.

    Not re-entrant: the scheduler's loop alone loads and closes, so no model leaves under a job.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        make_engine: Callable[[], Engine],
        threads: int,
        free: Callable[[], Available] = available,
    ) -> None:
        self.loading: Loading | None = None
        self.error: ImagegenError | None = None
        self.errors: dict[str, ImagegenError] = {}
        """By name of a model: why its last load failed."""
        self.ended: Callable[[str], None] = lambda why: None
        self._catalog = catalog
        self._settings = settings
        self._make_engine = make_engine
        self.threads = threads
        self._free = free
        self._tunings = Tunings(catalog.models_dir)
        self._slots: list[Slot] = []  # the most recently used is the last
        self._being_loaded = ""  # the name of the model that `loading` is about
        self._starting: Engine | None = None
        self._current: Engine | None = None  # what the last caller of `engine_for` got
        self._killed = asyncio.Event()  # since `engine_for` was called last
        self._failed: dict[str, tuple[float, ImagegenError]] = {}
        self._crashes: deque[float] = deque(maxlen=CRASHES)

    @property
    def entries(self) -> list[Entry]:
        """The loaded models, the most recently used first."""
        return [slot.entry for slot in reversed(self._slots)]

    @property
    def backend(self) -> str | None:
        return self._slots[-1].backend if self._slots else None

    @property
    def present(self) -> bool:
        return bool(self._slots or self._starting)

    def holds(self, entry: Entry) -> bool:
        return self._slot(entry) is not None

    def ready(self, entry: Entry | None) -> bool:
        """Whether an engine lives that has this model as it is wanted, decoder and all; None: any engine."""
        return any(slot.engine.alive and (entry is None or slot.entry == entry) for slot in self._slots)

    def loads(self, entry: Entry) -> bool:
        """Whether this model is being loaded just now."""
        return self._being_loaded == entry.name

    def tuned(self, entry: Entry) -> Options | None:
        """What a tuning has changed in a loaded model; None if it is not loaded, or has no tuning."""
        slot = self._slot(entry)
        return slot.tuned if slot else None

    def _slot(self, entry: Entry) -> Slot | None:
        """The one with this model, even if it is to be loaded otherwise."""
        return next((slot for slot in self._slots if slot.entry.name == entry.name), None)

    @property
    def next_expiry(self) -> float | None:
        """Seconds until a model has been idle for its time, None if none ever will be."""
        soonest = min((slot.expires for slot in self._slots), default=math.inf)
        return None if soonest == math.inf else max(0.0, soonest - time.monotonic())

    async def engine_for(
        self, entry: Entry, on_event: Callable[[Loading | Loaded], None], keep_alive: float | None = None
    ) -> Engine:
        """The engine with this model loaded; starts and loads if need be, and makes room before."""
        self._current = None
        self._killed.clear()
        slot = self._slot(entry)
        if slot is not None and (slot.entry != entry or not slot.engine.alive):
            await self.close("switched" if slot.engine.alive else "crashed", entry)
            slot = None
        if slot is None:
            self._refuse_hopeless(entry)
            slot = await self._load(entry, on_event)
        self._slots = [other for other in self._slots if other is not slot] + [slot]
        self._current, slot.used = slot.engine, time.monotonic()
        slot.keep_alive = self._settings.keep_alive if keep_alive is None else keep_alive
        return slot.engine

    @asynccontextmanager
    async def engine_without_model(self) -> AsyncIterator[Engine]:
        """For work that needs no model: the engine used last, else one that lives as long as this."""
        slot = next((slot for slot in reversed(self._slots) if slot.engine.alive), None)
        self._current = slot.engine if slot else None
        self._starting = None if slot else self._make_engine()
        try:
            yield slot.engine if slot else cast(Engine, self._starting)
        finally:
            await self._end_starting("idle")

    async def _load(self, entry: Entry, on_event: Callable[[Loading | Loaded], None]) -> Slot:
        self.loading, self._being_loaded = Loading(entry.id, 0, 0), entry.name
        try:
            headers = await self._unless_killed(lambda: self._catalog.checked_files(entry))
            await self._make_room(entry, headers)
            await self._end_starting("failed")
            spec, tuned = await self._unless_killed(lambda: self._tuned_spec(entry, headers))
            self._starting = self._make_engine()
            slot = Slot(entry, self._starting, headers, tuned=tuned)
            async for event in slot.engine.load(spec):
                match event:
                    case Loading():
                        self.loading = event
                        on_event(event)
                    case Loaded(seconds=seconds, backend=backend):
                        slot.backend = backend
                        on_event(event)
                        words = f", tuned: {tuned.words}" if tuned is not None else ""
                        log.info("model %s loaded in %.1f s on %s%s", entry.id, seconds, backend, words)
        except ImagegenError as exc:
            if self._killed.is_set():  # whatever the engine said at its end
                raise Cancelled("the load was cancelled") from exc
            self.error = self.errors[entry.name] = exc.bare()
            if isinstance(exc, ModelLoadFailed):
                self._failed[entry.name] = (time.monotonic(), self.error)
            raise
        else:
            self._slots.append(slot)
            self._starting, self.error = None, None
            self.errors.pop(entry.name, None)
            return slot
        finally:
            self.loading, self._being_loaded = None, ""

    def _tuned_spec(self, entry: Entry, headers: Mapping[Role, Header]) -> tuple[ModelSpec, Options | None]:
        """As the settings say; where they are silent, a tuning of this model on this machine decides."""
        paths = self._catalog.paths(entry)
        spec = model_spec(entry, paths, headers, self._settings, self.threads)
        tuning = self._tunings.find(entry.name, paths) if self._settings.tuning else None
        if tuning is None:
            return spec, None
        options = tuning.options.unless_said(self._settings)
        return options.applied(spec), options

    async def _make_room(self, entry: Entry, headers: Mapping[Role, Header]) -> None:
        """Close the least recently used models until the new one is within the bounds and fits."""
        sizes = {slot.entry.name: self._catalog.size_on_disk(slot.entry) for slot in self._slots}
        need, budget = self._catalog.size_on_disk(entry), self._settings.memory_budget_mb * 1e6
        if budget and need > budget:
            raise InsufficientMemory(
                f"the files of model {entry.name!r} have {size_words(need)}, and --memory-budget-mb allows"
                f" {size_words(budget)} for all loaded models: take a smaller model, or start the server with"
                f" --memory-budget-mb {math.ceil(need / 1e6)} or more",
                param="model",
            )
        while self._slots and (
            len(self._slots) >= self._settings.max_loaded
            or (budget and need + sum(sizes[slot.entry.name] for slot in self._slots) > budget)
        ):
            await self.close("switched", self._slots[0].entry)
            self._go_on()
        while self._settings.memory_check:
            free = await self._unless_killed(self._free)
            found = verdict_of(entry, headers, self._settings, free)
            if found.fits:
                return
            if not self._slots:
                survey = Survey(self._catalog, self._settings, free)
                raise refusal(
                    entry, found, await self._unless_killed(functools.partial(survey.next_best, entry))
                )
            await self.close("switched", self._slots[0].entry)

    async def _unless_killed(self, work: Callable[[], Result]) -> Result:
        """What a thread finds out; `kill` ends the wait for it, for a slow disk may hold up the thread."""
        working = asyncio.create_task(asyncio.to_thread(work))
        killed = asyncio.create_task(self._killed.wait())
        try:
            await asyncio.wait((working, killed), return_when=asyncio.FIRST_COMPLETED)
            self._go_on()
            return await working
        finally:
            working.cancel()
            killed.cancel()

    def _go_on(self) -> None:
        """A load that nobody waits for any more ends here, before it has an engine."""
        if self._killed.is_set():
            raise Cancelled("the load was cancelled")

    async def fitted(self, spec: GenerateSpec) -> GenerateSpec:
        """The same work for the model that `engine_for` gave last, decoded in tiles if it must be."""
        slot = self._slots[-1]
        if spec.vae_tiling or not self._settings.memory_check:
            return spec
        free = await asyncio.to_thread(self._free)
        tiling = needs_tiling(slot.entry, slot.headers, spec.width, spec.height, free, slot.backend)
        return replace(spec, vae_tiling=tiling)

    def _refuse_hopeless(self, entry: Entry) -> None:
        failed = self._failed.pop(entry.name, None)
        if failed is not None and time.monotonic() - failed[0] < RETRY_FAILED_LOAD:
            self._failed[entry.name] = failed
            raise failed[1].bare()

    def forget_failure(self, entry: Entry) -> None:
        """Somebody asked for this model by hand: try again at once."""
        self._failed.pop(entry.name, None)
        self.errors.pop(entry.name, None)

    def succeeded(self) -> None:
        """A job went well; in a pause its engine was alive all the time, which says nothing of others."""
        if not self.pause:
            self._crashes.clear()

    def crashed(self) -> None:
        """The engine died under a job."""
        self._crashes.append(time.monotonic())

    @property
    def pause(self) -> float:
        """Seconds for which no engine should be started, because of crashes in a row."""
        if len(self._crashes) < CRASHES or self._crashes[-1] - self._crashes[0] > CRASH_WINDOW:
            return 0.0
        return max(0.0, self._crashes[-1] + BREAK - time.monotonic())

    async def kill(self) -> None:
        """End the engine under a running command, or a load that has none yet; who awaits it sees it end."""
        self._killed.set()
        engine = self._starting or self._current
        if engine is not None:
            await engine.close()

    async def expire(self) -> None:
        """Close the models whose idle time is over."""
        now = time.monotonic()
        for slot in [slot for slot in self._slots if slot.expires <= now]:
            await self.close("idle", slot.entry)

    async def close(self, why: str, entry: Entry | None = None) -> None:
        """End the engine of this model, or all, and one that was starting; returns when they are gone.

        A load that was cancelled has not failed.
        """
        if why == "cancelled":
            self.error = None
        ending = [slot for slot in self._slots if entry is None or slot.entry.name == entry.name]
        self._slots = [slot for slot in self._slots if slot not in ending]
        for slot in ending:
            await slot.engine.close()
            self.ended(why)
        await self._end_starting(why)

    async def _end_starting(self, why: str) -> None:
        engine, self._starting = self._starting, None
        if engine is not None:
            await engine.close()
            self.ended(why)
