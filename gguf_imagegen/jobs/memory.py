"""Gives all memory back to other programs of this machine, until the next job needs some."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.vocabulary.errors import ModelBusy

UNLOADING: Final = 30.0
"""Seconds that engines get to end; they take less than one."""


async def give_back(scheduler: Scheduler, catalog: Catalog, patience: float) -> list[Entry]:
    """Unload all models, those in use when no job needs them any more; what was in memory.

    Raises ModelBusy if jobs still do after `patience` seconds; what they use is unloaded after them.
    """
    pool = scheduler.pool
    loading = [catalog.get(lane.being_loaded) for lane in pool.lanes if lane.being_loaded]
    entries = list({entry.name: entry for entry in (*pool.entries, *loading)}.values())
    for entry in entries:
        await scheduler.unload(entry)
    start = time.monotonic()
    while pool.present:
        waited, jobs = time.monotonic() - start, len(scheduler.running) + scheduler.waiting
        if waited >= patience + (0 if jobs else UNLOADING):
            raise ModelBusy(
                f"{jobs} jobs run or wait; the memory is free after them. Try again later, or wait longer"
                " with ?wait=SECONDS",
                retry_after=5,
            )
        await asyncio.sleep(0.05)
    return entries
