"""The sets of a server: whose turn it is, and what goes on after a restart.

A set has few jobs in the queue at a time, so that others get their turn; all else about a picture is its
job's business. The journal has the set with all its items, and each job with the set as its parent: what has
a job there goes on or has ended, and what has none is still to be queued.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from gguf_imagegen.jobs.job import Ended, Job
from gguf_imagegen.jobs.ledger import Ledger, Past
from gguf_imagegen.jobs.picture_set import PictureSet
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.jobs.ticket import Ticket
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.callers import Caller
from gguf_imagegen.vocabulary.errors import (
    Cancelled,
    ImagegenError,
    InternalError,
    JobNotFound,
    QueueFull,
    ShuttingDown,
)

log = logging.getLogger(__name__)

MOST_ENDED = 50
"""Ended sets that can be looked at; beyond, the oldest are forgotten before their time."""
TRIES = 20
"""How often an item is tried to be queued, while there is no room for it on the disk or in memory."""

SubmitItem = Callable[[PictureSet, int], Awaitable[Job]]


class Sets:
    """Feeds the scheduler from sets; `submit_item` queues one item, or raises what is against it."""

    def __init__(
        self, scheduler: Scheduler, ledger: Ledger | None, submit_item: SubmitItem, settings: Settings
    ) -> None:
        self._scheduler = scheduler
        self._ledger = ledger
        self._submit_item = submit_item
        self._settings = settings
        self._sets: dict[str, PictureSet] = {}
        self._feeding: dict[str, asyncio.Task[None]] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    @property
    def ids(self) -> Iterable[str]:
        return self._sets.keys()

    def get(self, set_id: str, caller: Caller) -> PictureSet:
        """The set of this id; to those who may not see it, it is not there."""
        found = self._sets.get(set_id)
        if found is None or not caller.may_see(found.sender.caller.name):
            raise JobNotFound(f"there is no set {set_id[:60]!r}, or it has expired")
        return found

    def seen_by(self, caller: Caller) -> list[PictureSet]:
        """The newest first."""
        return [each for each in reversed(self._sets.values()) if caller.may_see(each.sender.caller.name)]

    async def submit(self, wanted: PictureSet) -> None:
        """Take a set, which is stored, if anything is. Raises QueueFull and ShuttingDown."""
        if len(self._feeding) >= self._settings.max_queue:
            raise QueueFull(f"{len(self._feeding)} sets are not done yet; try again later", retry_after=60)
        if self._ledger is not None:
            await self._ledger.accept_set(wanted)
        self._sets[wanted.id] = wanted
        self._feed(wanted)

    async def cancel(self, wanted: PictureSet) -> None:
        """End all items that have not ended. Harmless on a finished set."""
        if wanted.ended is None:
            await self._end(wanted, Cancelled("the set was cancelled"))
            await self._cancel_live(wanted)

    async def cancel_item(self, wanted: PictureSet, index: int) -> None:
        """End one item, which gets its job for that if it has none, so that its end is kept as any other."""
        if not 0 <= index < len(wanted.items):
            raise JobNotFound(f"{wanted.id} has no item {index}, but 0 to {len(wanted.items) - 1}")
        async with self._turn(wanted):
            if index not in wanted.jobs and wanted.ended is None:
                await self._queue(wanted, index)
            if job := wanted.jobs.get(index):
                await self._scheduler.cancel(job)

    # -- after a restart ------------------------------------------------------------------------------

    async def take_back(self, past: Past, ticket: Ticket, able: Abilities) -> PictureSet:
        """A set of an earlier run of the server; it goes on when its jobs are there, too."""
        assert self._ledger is not None
        ends = [(at, event.error) for _, at, event in past.events if isinstance(event, Ended)]
        request, why = ImageRequest(), None
        if not ends:
            try:
                request = await self._ledger.request(ticket, able)
            except ImagegenError as exc:
                why = exc.bare()
        found = PictureSet(
            request,
            ticket.operation,
            ticket.items,
            ticket.sender,
            id=ticket.id,
            created=ticket.created,
            repeat=ticket.repeat,
        )
        found.errors |= past.faults
        self._sets[found.id] = found
        if ends:
            found.ended, found.end = ends[-1]
        elif why is not None:
            await self._end(found, why)
        return found

    def go_on(self) -> None:
        """All jobs of earlier runs are known now."""
        for each in self._sets.values():
            for index, item in enumerate(each.items):
                if job := self._scheduler.jobs.get(item.job):
                    each.jobs[index], job.held = job, True
            if each.ended is None or each.live:
                self._feed(each)

    # -- the work -------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Forget sets that are past their time; their jobs go when theirs comes."""
        ended = [each for each in self._sets.values() if each.ended is not None]
        for newer, each in enumerate(reversed(ended)):
            if newer >= MOST_ENDED or time.time() - (each.ended or 0) > self._settings.job_ttl:
                del self._sets[each.id]
                self._turns.pop(each.id, None)
                for job in each.jobs.values():
                    job.held = False

    async def close(self) -> None:
        """End the feeding; what is left of stored sets goes on at the next start."""
        feeding = list(self._feeding.values())
        for task in feeding:
            task.cancel()
        await asyncio.gather(*feeding, return_exceptions=True)

    def _feed(self, wanted: PictureSet) -> None:
        task = asyncio.create_task(self._work(wanted))
        self._feeding[wanted.id] = task
        task.add_done_callback(lambda _: self._feeding.pop(wanted.id, None))

    async def _work(self, wanted: PictureSet) -> None:
        """Queue item after item, a few ahead, and end the set when the last one has ended."""
        try:
            for index in range(len(wanted.items)):
                await self._until(wanted, len(self._scheduler.pool.lanes))
                if wanted.ended is not None or not await self._queued(wanted, index):
                    break
            if wanted.ended is not None:  # and a kill may have come between
                await self._cancel_live(wanted)
            await self._until(wanted, 0)
            if wanted.ended is None and not self._scheduler.draining:
                await self._end(wanted, None)
        except Exception:  # the other sets go on; the log has the trace
            log.exception("internal error in set %s", wanted.id)
            await self._end(wanted, InternalError("internal error; the server's log has the details"))

    async def _until(self, wanted: PictureSet, most: int) -> None:
        """Wait until at most so many of its jobs wait or run."""
        while len(live := wanted.live) > most:
            ends = [asyncio.ensure_future(job.wait()) for job in live]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in ends:
                    each.cancel()

    async def _queued(self, wanted: PictureSet, index: int) -> bool:
        """Whether the set may go on; an item that cannot be queued fails alone."""
        for _ in range(TRIES):
            async with self._turn(wanted):
                if wanted.ended is not None or index in wanted.jobs or index in wanted.errors:
                    return wanted.ended is None
                try:
                    await self._queue(wanted, index)
                except ShuttingDown:
                    return False
                except ImagegenError as exc:
                    pause, last = exc.retry_after, exc.bare()
                else:
                    return True
            if pause is None:
                break
            await asyncio.sleep(pause)
        wanted.errors[index] = last
        if self._ledger is not None:
            self._ledger.item_failed(wanted, index, last)
        self._scheduler.news.wake()
        return True

    async def _queue(self, wanted: PictureSet, index: int) -> None:
        job = await self._submit_item(wanted, index)
        wanted.jobs[index], job.held = job, True

    async def _cancel_live(self, wanted: PictureSet) -> None:
        async with self._turn(wanted):  # an item that is just being queued is live then
            await asyncio.gather(*(self._scheduler.cancel(job) for job in wanted.live))

    async def _end(self, wanted: PictureSet, error: ImagegenError | None) -> None:
        """What has no job yet gets none."""
        wanted.ended, wanted.end = time.time(), error
        wanted.request = wanted.request.without_files()
        if self._ledger is not None:
            await self._ledger.end_set(wanted, Ended(error))
        self._scheduler.news.wake()

    def _turn(self, wanted: PictureSet) -> asyncio.Lock:
        """Held while an item is queued."""
        return self._turns.setdefault(wanted.id, asyncio.Lock())
