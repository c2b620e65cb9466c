"""Waiting for a job in the name of a tool call, with progress as MCP has it: a number that only rises."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator

from gguf_imagegen.jobs.job import Job, JobEvent, Queued, Started, image_fraction
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.vocabulary.events import Loading, PhaseChanged, Progress

Tell = Callable[[float, str], Awaitable[None]]
"""Sends a notification: per cent of the job, and words."""
LEAST = 0.01
"""Per cent by which a notification rises that has nothing new to count."""


async def follow(job: Job, scheduler: Scheduler, tell: Tell, seconds: float, heartbeat: float) -> None:
    """Until the job's end, or for so many seconds; each step is told, and every `heartbeat` that it lives."""
    telling = _Telling(job, scheduler, tell)
    ends, count = time.monotonic() + seconds, 0
    while (left := ends - time.monotonic()) > 0 and not (job.ended and count >= len(job.events)):
        if await job.more_than(count, min(left, heartbeat)):
            events = job.events[count:]
            count += len(events)
            await telling.events(events)
        elif not job.ended:
            await telling.alive()


class _Telling:
    def __init__(self, job: Job, scheduler: Scheduler, tell: Tell) -> None:
        self._job = job
        self._scheduler = scheduler
        self._tell = tell
        self._last = -LEAST
        self._words = ""

    async def events(self, events: list[JobEvent]) -> None:
        for progress, words in self._news(events):
            await self._rise(progress, words)

    async def alive(self) -> None:
        """Nothing happened; clients that count silence are told that the job lives."""
        position = self._scheduler.position(self._job)
        await self._rise(0.0, f"waits, place {position}" if position else self._words or "runs")

    def _news(self, events: list[JobEvent]) -> Iterator[tuple[float, str]]:
        for event in events:
            match event:
                case Queued(position=position):
                    yield 0.0, f"waits, place {position}"
                case Started():
                    yield 0.0, "started"
                case Loading(what=what, done=done, total=total) if done in (0, total):
                    yield 0.0, f"loading {what}"
                case Progress(index=index, phase=phase, step=step, steps=steps):
                    yield self._done(event), f"{phase} {step}/{steps}{self._of(index)}"
                case PhaseChanged(index=index, phase=phase):
                    yield 0.0, f"{phase}{self._of(index)}"

    def _done(self, event: Progress) -> float:
        plan = self._job.plan
        return min(99.0, 100 * (event.index + image_fraction(event, plan)) / plan.n)

    def _of(self, index: int) -> str:
        return f" of picture {index + 1}/{self._job.plan.n}" if self._job.plan.n > 1 else ""

    async def _rise(self, progress: float, words: str) -> None:
        self._words = words
        self._last = max(progress, self._last + LEAST)
        await self._tell(round(self._last, 4), f"{self._job.id}: {words}")
