"""How a lane's node opens a model that a server of another machine names: its files, room, and options.

Add-ons that come with the work are found here, too.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.store import Store
from gguf_imagegen.catalog.verdict import refusal, verdict_of
from gguf_imagegen.download.pull import Pull
from gguf_imagegen.machine import locks
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.machine.memory import available
from gguf_imagegen.machine.processes import user_number
from gguf_imagegen.planning.control import require_whole
from gguf_imagegen.planning.load_spec import model_spec
from gguf_imagegen.planning.loras import fitted
from gguf_imagegen.pool.neighbour import Neighbour
from gguf_imagegen.pool.ray.files import Resolver
from gguf_imagegen.pool.ray.messages import Load
from gguf_imagegen.pool.ray.node_settings import pulls_models
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Generate, LoadSpec
from gguf_imagegen.vocabulary.errors import ModelNotDownloaded, ServerBusy

AGAIN: Final = 0.1


class Opening:
    """Of one device; lanes of a node load one after the other, for what is free is given away once."""

    def __init__(self, settings: Settings, device: Device, node: str) -> None:
        self._settings = settings
        self._device = device
        self.resolver = Resolver(settings, node)
        self._models: dict[int, tuple[Entry, Settings]] = {}  # by engine
        self._neighbour = Neighbour(settings.before_load)
        user = user_number()
        self._turn = Path(tempfile.gettempdir()) / f"gguf-imagegen-load-{user}-{_plain(node)}.lock"

    @asynccontextmanager
    async def spec(self, order: Load) -> AsyncIterator[LoadSpec]:
        """What to load, for which there is room as long as this lasts.

        Raises ModelNotDownloaded, InvalidModelFile and InsufficientMemory.
        """
        settings = self._settings.model_copy(update=dict(order.settings))
        entry = await self._found(Entry.model_validate_json(order.entry), order)
        self._models[order.engine] = entry, settings
        catalog = Catalog([entry], settings.models_dir)
        if "control_net" in entry.files:
            await asyncio.to_thread(require_whole, entry, catalog.paths(entry))
        headers = await asyncio.to_thread(catalog.checked_files, entry)
        await self._neighbour.ask()
        async with self._turn_to_load():
            while settings.memory_check:
                free = await asyncio.to_thread(available, gpu=self._device.gpu)
                found = verdict_of(entry, headers, settings, free)
                if found.fits:
                    break
                if not self._neighbour.leaving:
                    raise refusal(entry, found)
                await asyncio.sleep(AGAIN)
            yield model_spec(entry, catalog.paths(entry), headers, settings, self._device.threads)

    def task(self, engine: int, spec: Generate, notes: list[str]) -> Generate:
        """The work with its add-ons where they lie here, and compared with the model if nobody has done so.

        `notes` are told what of them has no effect. Blocks: call it in a thread. Raises MissingAddon and
        InvalidModelFile.
        """
        spec = self.resolver.task(spec)
        if all(lora.checked for lora in spec.loras):
            return spec
        entry, settings = self._models[engine]
        return replace(spec, loras=fitted(spec.loras, entry, settings, notes))

    def forget(self, engine: int) -> None:
        """It is gone."""
        self._models.pop(engine, None)

    async def _found(self, entry: Entry, order: Load) -> Entry:
        try:
            return await asyncio.to_thread(self.resolver.entry, entry, order.files, order.names)
        except ModelNotDownloaded:
            if not (pulls_models() and entry.sources):
                raise
        pull = Pull(Store(self._settings.models_dir), entry.sources.values(), lambda event: None)
        try:
            await asyncio.to_thread(pull.run)
        finally:
            pull.cancel()
        return await asyncio.to_thread(self.resolver.entry, entry, order.files, order.names)

    @asynccontextmanager
    async def _turn_to_load(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(locks.in_turn(self._turn, self._settings.load_timeout))
            except locks.Held:
                raise ServerBusy(f"another lane of {self.resolver.node} loads for too long") from None
            yield


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)
