"""What every lane is to those who give it work: the models in memory there, who holds them, and its crashes.

`pool.lane` loads on this machine, `pool.ray.lane` on a machine of the cluster.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.machine.memory import Available
from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.pictures.finish import Finish
from gguf_imagegen.pool.failures import Crashes, Failures
from gguf_imagegen.pool.loaded_model import LoadedModel
from gguf_imagegen.pool.options import Options
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Generate, LiveEngine, Role
from gguf_imagegen.vocabulary.errors import Cancelled, ImagegenError
from gguf_imagegen.vocabulary.events import EngineEvent, Loaded, Loading, Made
from gguf_imagegen.vocabulary.waits import Waits

log = logging.getLogger(__name__)

Tell = Callable[[Loading | Loaded], None]
Result = TypeVar("Result")


class BaseLane(ABC):
    """A device that computes one job at a time. At most `max_loaded` models, each in an engine of its own.

    Not re-entrant: the scheduler alone gives it work, one at a time, so no model leaves under a job.
    """

    build = ""
    """Names the engine's build; equal ones make equal pixels. Empty where it is not known."""
    leaving = False
    """Whether it takes no more work, because its machine is to be stopped."""
    heard = True
    """Whether it is known which files it has."""

    def __init__(self, settings: Settings, device: Device, failures: Failures, waits: Waits) -> None:
        self.device = device
        self.loading: Loading | None = None
        self.used = 0.0
        """When work for a model began here last (monotonic clock)."""
        self.failures = failures
        self.ended: Callable[[str], None] = lambda why: None
        self.on_gpu = {"cpu": False, "auto": None}.get(device.kind, True)
        """Whether engines here compute on a GPU with memory of its own; None before the first load tells."""
        self.crashes = Crashes(waits.crash_pause)
        self._settings = settings
        self._models: list[LoadedModel] = []  # the most recently used is the last
        self._being_loaded = ""  # the name of the model that `loading` is about
        self._starting: LiveEngine | None = None
        self._held: LiveEngine | None = None  # by whoever is inside `loaded` or `without_model`
        self._killed = asyncio.Event()  # since that began

    # -- what differs ---------------------------------------------------------------------------------

    @abstractmethod
    def has(self, entry: Entry | None, addons: Sequence[Path] = ()) -> bool:
        """Whether the files are where they would be loaded; `addons` are those that a job names besides.

        Without a model they are all that it needs.
        """

    @abstractmethod
    def free(self) -> Available:
        """Memory that is free for a model; may ask GPUs."""

    def pulls(self, entry: Entry | None, addons: Sequence[Path] = ()) -> bool:
        """Whether files that it lacks are fetched there when they are needed."""
        return False

    def addons(self, flag: str) -> frozenset[str]:
        """What requests may call the files in the folder of this flag on the lane's own machine, if that is
        another one; in small letters.
        """
        return frozenset()

    @property
    def machine(self) -> str:
        """What it is called in messages."""
        return "this server"

    @abstractmethod
    def must_tile(self, entry: Entry, headers: Mapping[Role, Header], width: int, height: int) -> bool:
        """Whether such a picture could not be decoded whole here if nothing else were in memory."""

    @abstractmethod
    async def make_room_to_decode(self, model: LoadedModel, spec: Generate) -> None:
        """Close other models until this work can be decoded as it says; NoRoomYet if that is not enough."""

    @abstractmethod
    def draw(self, model: LoadedModel, spec: Generate, finish: Finish) -> AsyncIterator[EngineEvent]:
        """What the model makes; pictures and previews come as files (`pool.finishing`)."""

    @abstractmethod
    def enlarge(self, engine: LiveEngine, made: Made, finish: Finish) -> AsyncIterator[EngineEvent]:
        """The same of a picture that is there already; `engine` is one of this lane's."""

    @abstractmethod
    def _new_engine(self) -> LiveEngine:
        """An engine without a model, not started yet."""

    @abstractmethod
    async def _opened(self, entry: Entry, tell: Tell) -> LoadedModel:
        """The model in an engine of its own, which is `_starting` while it loads."""

    # -- what is in memory ----------------------------------------------------------------------------

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
        self, entry: Entry, tell: Tell, keep_alive: float | None = None
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
    async def without_model(self) -> AsyncIterator[LiveEngine]:
        """Hold an engine for work that needs no model: the one used last, else one for this work alone."""
        self._killed.clear()
        model = next((model for model in reversed(self._models) if model.engine.alive), None)
        self._held = model.engine if model else None
        self._starting = None if model else self._new_engine()
        try:
            yield model.engine if model else cast(LiveEngine, self._starting)
        finally:
            self._held = None
            await self._end_starting("idle")

    async def _found_or_loaded(self, entry: Entry, tell: Tell) -> LoadedModel:
        model = self._model(entry)
        if model is not None and not (model.engine.alive and model.entry.serves(entry)):
            await self.close("switched" if model.engine.alive else "crashed", entry)
            model = None
        if model is None:
            self.failures.refuse_hopeless(entry)
            model = await self._load(entry, tell)
        return model

    async def _load(self, entry: Entry, tell: Tell) -> LoadedModel:
        self.loading, self._being_loaded = Loading(entry.id, 0, 0), entry.name
        try:
            model = await self._opened(entry, tell)
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
