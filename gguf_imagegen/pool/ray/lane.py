"""A lane on another machine of the cluster: its node opens models and finishes pictures."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.verdict import must_tile
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.machine.memory import Available
from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.pictures.finish import Finish
from gguf_imagegen.pool.base_lane import BaseLane, Tell
from gguf_imagegen.pool.failures import Failures, NoRoomYet
from gguf_imagegen.pool.loaded_model import LoadedModel
from gguf_imagegen.pool.ray import files
from gguf_imagegen.pool.ray.engine import FarEngine, Line
from gguf_imagegen.pool.ray.files import Known
from gguf_imagegen.pool.ray.messages import Load, Offer, OfferedDevice, Stock
from gguf_imagegen.pool.ray.node_settings import said
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Generate, LiveEngine, Role
from gguf_imagegen.vocabulary.errors import (
    InsufficientMemory,
    InvalidModelFile,
    ModelLoadFailed,
    ModelNotDownloaded,
    WorkerKilled,
)
from gguf_imagegen.vocabulary.events import EngineEvent, Loaded, Loading, Made
from gguf_imagegen.vocabulary.waits import Waits

log = logging.getLogger(__name__)

UNFIT = (ModelLoadFailed, ModelNotDownloaded, InvalidModelFile)
"""What another node may do better, whose files are others."""


class FarLane(BaseLane):
    """A device of a node. `line` carries orders and news; `stock` is what lies there, as last told.

    `others` is whether another lane could load a model that this one could not.
    """

    def __init__(
        self,
        known: Known,
        settings: Settings,
        offer: Offer,
        offered: OfferedDevice,
        line: Line,
        waits: Waits,
        others: Callable[[FarLane, Entry], bool],
    ) -> None:
        device = Device(offered.name, offered.threads, gpu=offered.gpu)
        super().__init__(settings, device, Failures(waits.failed_load), waits)
        self.build = offer.build
        self.node = offer.name
        self.line = line
        self.stock, self.heard = Stock({}, {}), False
        self._addons: Mapping[str, frozenset[str]] = {}
        self._known = known
        self._offer = offer
        self._whole = Available(offered.ram, offered.vram)
        self._others = others
        self._unfit: set[str] = set()
        """Models that could not be loaded here with the files that are here now."""

    @property
    def name(self) -> str:
        return f"{self.node}/{self.device.name}"

    @property
    def machine(self) -> str:
        """See `BaseLane`."""
        return self.node

    def free(self) -> Available:
        """See `BaseLane`; all of it, as far as the server knows."""
        return self._whole

    def take_stock(self, stock: Stock) -> None:
        self.stock, self.heard, self.leaving = stock, True, self.leaving or stock.leaving
        self._addons = _addons(stock)
        self._unfit.clear()

    def has(self, entry: Entry | None, addons: Sequence[Path] = ()) -> bool:
        """See `BaseLane`."""
        return (entry is None or self._has_model(entry)) and self._has_addons(addons)

    def _has_model(self, entry: Entry) -> bool:
        there = files.has(self.stock, entry, self._known.of(entry), self._settings)
        return there and entry.name not in self._unfit

    def pulls(self, entry: Entry | None, addons: Sequence[Path] = ()) -> bool:
        """See `BaseLane`."""
        return (
            entry is not None
            and self._offer.pulls
            and bool(entry.sources)
            and entry.name not in self._unfit
            and self._has_addons(addons)
        )

    def _has_addons(self, addons: Sequence[Path]) -> bool:
        """Under the same names, and as large; their contents are not compared."""
        stock, named = self.stock.addons, self._settings
        return all(stock.get(files.addon_name(path, named)) == self._known.size(path) for path in addons)

    def addons(self, flag: str) -> frozenset[str]:
        """See `BaseLane`."""
        return self._addons.get(flag, frozenset())

    def must_tile(self, entry: Entry, headers: Mapping[Role, Header], width: int, height: int) -> bool:
        """See `BaseLane`."""
        return must_tile(entry, headers, self._settings, width, height, self._whole, self.on_gpu)

    async def make_room_to_decode(self, model: LoadedModel, spec: Generate) -> None:
        """See `BaseLane`; the engine itself decodes in tiles where the node's memory is short."""

    def draw(self, model: LoadedModel, spec: Generate, finish: Finish) -> AsyncIterator[EngineEvent]:
        """See `BaseLane`."""
        engine = model.engine
        assert isinstance(engine, FarEngine)
        return engine.draw(files.abroad(spec, self._settings), files.finish_abroad(finish, self._settings))

    def enlarge(self, engine: LiveEngine, made: Made, finish: Finish) -> AsyncIterator[EngineEvent]:
        """See `BaseLane`."""
        assert isinstance(engine, FarEngine)
        return engine.enlarge(made, files.finish_abroad(finish, self._settings))

    def _new_engine(self) -> LiveEngine:
        return self.line.new_engine()

    async def _opened(self, entry: Entry, tell: Tell) -> LoadedModel:
        while len(self._models) >= self._settings.max_loaded:
            await self.close("switched", self._models[0].entry)
        order = await self._in_thread(lambda: self._order(entry))
        try:
            return await self._started(entry, order, tell)
        except InsufficientMemory as refused:
            if not self._models:
                raise NoRoomYet(refused) from None
        await self._end_starting("failed")
        while self._models:
            await self.close("switched", self._models[0].entry)
        return await self._started(entry, order, tell)

    async def _started(self, entry: Entry, order: Callable[[int, int], Load], tell: Tell) -> LoadedModel:
        await self._end_starting("failed")
        engine = self._starting = self.line.new_engine()
        model = LoadedModel(entry, engine, {})
        try:
            async for event in engine.load(lambda run: order(engine.number, run)):
                self._note(model, event, tell)
        except UNFIT as exc:
            if not self._others(self, entry):
                raise
            self._unfit.add(entry.name)
            raise WorkerKilled(f"{self.node} could not load the model: {exc.message}") from None
        return model

    def _note(self, model: LoadedModel, event: EngineEvent, tell: Tell) -> None:
        match event:
            case Loading():
                self.loading = event
                tell(event)
            case Loaded(seconds=seconds, backend=backend, kernels=kernels):
                model.backend, model.kernels = backend, kernels
                self.on_gpu = backend != "CPU"
                tell(event)
                log.info("model %s loaded in %.1f s on %s", model.entry.id, seconds, self.name)
            case _:
                pass

    def _order(self, entry: Entry) -> Callable[[int, int], Load]:
        """With what the server knows of the files; looks at them."""
        names = {str(role): files.name_of(file, self._settings) for role, file in entry.files.items()}
        known, body = dict(self._known.of(entry)), entry.model_dump_json().encode()
        return lambda engine, run: Load(engine, run, body, said(self._settings), names, known)


def _addons(stock: Stock) -> dict[str, frozenset[str]]:
    """What requests may call the files, by the flag of their folder."""
    found: dict[str, set[str]] = defaultdict(set)
    for name in stock.addons:
        place = PurePosixPath(name.partition("/")[2])
        for each in (place, PurePosixPath(place.name)):
            found[files.flag_of(name)] |= {str(each).casefold(), str(each.with_suffix("")).casefold()}
    return {flag: frozenset(names) for flag, names in found.items()}
