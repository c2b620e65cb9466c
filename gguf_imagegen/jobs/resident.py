"""The model that is in memory: loading it, remembering what failed, closing it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable

from gguf_imagegen.catalog.catalog import Catalog, Entry
from gguf_imagegen.catalog.inspect import holds_vae
from gguf_imagegen.engine.protocol import Engine, ModelSpec
from gguf_imagegen.errors import ImagegenError, ModelLoadFailed, WorkerCrashed
from gguf_imagegen.events import Loaded, Loading
from gguf_imagegen.settings import Settings

log = logging.getLogger(__name__)

CRASHES = 3
"""So many crashes within CRASH_WINDOW seconds, and nothing is started for the next BREAK seconds."""
CRASH_WINDOW = 60.0
BREAK = 15.0
RETRY_FAILED_LOAD = 15.0
"""Seconds for which a model that failed to load is not tried again."""


class Resident:
    """At most one engine with at most one model. Not re-entrant: the scheduler's loop alone loads."""

    def __init__(
        self, catalog: Catalog, settings: Settings, make_engine: Callable[[], Engine], threads: int
    ) -> None:
        self.entry: Entry | None = None
        self.loading: Loading | None = None
        self.error: ImagegenError | None = None
        self.backend: str | None = None
        self.ended: Callable[[str], None] = lambda why: None
        self._catalog = catalog
        self._settings = settings
        self._make_engine = make_engine
        self._threads = threads
        self._engine: Engine | None = None
        self._failed: dict[str, tuple[float, ImagegenError]] = {}
        self._crashes: deque[float] = deque(maxlen=CRASHES)

    @property
    def present(self) -> bool:
        return self._engine is not None

    async def engine_for(self, entry: Entry, on_event: Callable[[Loading | Loaded], None]) -> Engine:
        """The engine with this model loaded; starts and loads if need be."""
        if self._engine is not None and self._engine.alive and self.entry == entry:
            return self._engine
        self._refuse_hopeless(entry)
        await self.close("switched")
        try:
            await self._load(entry, on_event)
        except ImagegenError as exc:
            self.error = exc
            if isinstance(exc, ModelLoadFailed):
                self._failed[entry.id] = (time.monotonic(), exc)
            raise
        assert self._engine is not None
        return self._engine

    async def _load(self, entry: Entry, on_event: Callable[[Loading | Loaded], None]) -> None:
        self.loading = Loading(entry.id, 0, 0)
        try:
            headers = await asyncio.to_thread(self._catalog.checked_files, entry)
            self._engine = self._make_engine()
            spec = ModelSpec(
                name=entry.id,
                files=self._catalog.paths(entry),
                threads=self._threads,
                built_in_vae=any(holds_vae(header) for header in headers.values()),
                flash_attention=self._settings.flash_attention,
                offload_to_cpu=self._settings.offload_to_cpu,
                vae_on_cpu=self._settings.vae_on_cpu,
                text_encoders_on_cpu=self._settings.text_encoders_on_cpu,
                rng=self._settings.rng,
            )
            async for event in self._engine.load(spec):
                match event:
                    case Loading():
                        self.loading = event
                        on_event(event)
                    case Loaded(seconds=seconds, backend=backend):
                        self.backend = backend
                        on_event(event)
                        log.info("model %s loaded in %.1f s on %s", entry.id, seconds, backend)
        finally:
            self.loading = None
        self.entry, self.error = entry, None

    def _refuse_hopeless(self, entry: Entry) -> None:
        now = time.monotonic()
        failed = self._failed.pop(entry.id, None)
        if failed is not None and now - failed[0] < RETRY_FAILED_LOAD:
            self._failed[entry.id] = failed
            raise failed[1]
        if len(self._crashes) == CRASHES and now - self._crashes[0] < CRASH_WINDOW:
            wait = BREAK - (now - self._crashes[-1])
            if wait > 0:
                raise WorkerCrashed(
                    f"the engine crashed {CRASHES} times in a row; it is given a pause,"
                    f" try again in {math.ceil(wait)} s",
                    retry_after=math.ceil(wait),
                )

    def forget_failure(self, entry: Entry) -> None:
        """Somebody asked for this model by hand: try again at once."""
        self._failed.pop(entry.id, None)

    def succeeded(self) -> None:
        self._crashes.clear()

    def crashed(self) -> None:
        """The engine died under a job; a refusal, for which none was started, is no further crash."""
        if self.present:
            self._crashes.append(time.monotonic())

    async def kill(self) -> None:
        """End the engine under a running command; whoever awaits the command sees it end."""
        if self._engine is not None:
            await self._engine.close()

    async def close(self, why: str) -> None:
        """End the engine; returns when it is gone. A load that was cancelled has not failed."""
        if why == "cancelled":
            self.error = None
        engine, self._engine, self.entry = self._engine, None, None
        if engine is not None:
            await engine.close()
            self.ended(why)
