"""Waiting jobs whose files no machine of a cluster has: they are told, and fail if none comes that has them.

New requests of this kind are refused; these were taken before the machines joined, or theirs have left.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from gguf_imagegen.jobs.job import Job
from gguf_imagegen.jobs.queue import Queue
from gguf_imagegen.pool.pool import Pool
from gguf_imagegen.vocabulary.errors import ImagegenError
from gguf_imagegen.vocabulary.events import Notice
from gguf_imagegen.vocabulary.waits import Waits


class Absent:
    """Looks at the queue of a server that has lanes elsewhere; `tell` publishes, `end` fails a job."""

    def __init__(
        self,
        pool: Pool,
        waits: Waits,
        tell: Callable[[Job, Notice], None],
        end: Callable[[Job, ImagegenError], Awaitable[None]],
    ) -> None:
        self._pool = pool
        self._waits = waits
        self._tell = tell
        self._end = end
        self._since: dict[str, float] = {}  # by `Waiting.needs`: when no machine had it first
        self._told: dict[str, str] = {}  # by id of a job: what it was told last

    @property
    def next(self) -> float | None:
        """Seconds until a job must be told, or fails."""
        now, bounds = time.monotonic(), (self._waits.absent_told, self._waits.absent)
        rests = (at + bound - now for at in self._since.values() for bound in bounds)
        return min((rest for rest in rests if rest > 0), default=None)

    async def look(self, queue: Queue) -> None:
        """At all jobs that wait, once every lane has said what it has."""
        lanes = self._pool.lanes
        if not self._pool.spreads or not all(lane.heard for lane in lanes):
            return
        wants = queue.wants if lanes else {}
        faults = {needs: fault for needs, files in wants.items() if (fault := self._pool.lacking(*files))}
        now = time.monotonic()
        self._since = {needs: self._since.get(needs, now) for needs in faults}
        waiting = [(job, needs) for job, needs in queue.needs if needs in faults]
        self._told = {job.id: self._told.get(job.id, "") for job, _ in waiting}
        for job, needs in waiting:
            fault, age = faults[needs], now - self._since[needs]
            if age >= self._waits.absent:
                await self._end(job, fault)
            elif age >= self._waits.absent_told and self._told[job.id] != fault.message:
                self._told[job.id] = fault.message
                minutes = self._waits.absent / 60
                self._tell(job, Notice(f"{fault.message}; the job waits {minutes:g} minutes for that"))
