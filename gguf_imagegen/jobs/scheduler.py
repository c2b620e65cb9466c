"""The scheduler: jobs from the queue onto the lanes, one each, and what callers may ask of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.jobs.absent import Absent
from gguf_imagegen.jobs.estimates import Pace
from gguf_imagegen.jobs.job import Ended, Job, JobEvent, Observer, Queued, Store, forget_old
from gguf_imagegen.jobs.news import News
from gguf_imagegen.jobs.queue import Queue
from gguf_imagegen.jobs.results import ResultStore
from gguf_imagegen.jobs.runner import Runner, load
from gguf_imagegen.pool.base_lane import BaseLane
from gguf_imagegen.pool.failures import IN_TILES, NoRoomYet
from gguf_imagegen.pool.placement import Rules, place
from gguf_imagegen.pool.pool import Pool
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.callers import Caller
from gguf_imagegen.vocabulary.errors import (
    Cancelled,
    ImagegenError,
    JobNotFound,
    QueueFull,
    ShuttingDown,
    WorkerKilled,
)
from gguf_imagegen.vocabulary.events import Notice
from gguf_imagegen.vocabulary.waits import USUAL, Waits

log = logging.getLogger(__name__)

LaneStatus: TypeAlias = Literal["idle", "loading", "running", "paused"]

MOST_LOST = 3
"""How often a job may lose its lane before it fails."""
CLOSING = "the server is shutting down; try again in a moment"


@dataclass(frozen=True)
class Work:
    """What a lane does; without a job it is a load that somebody wished for."""

    job: Job | None
    task: asyncio.Task[None]


class Scheduler:
    """Owns all jobs; `run()` is the only place that makes engines work."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        results: ResultStore,
        observer: Observer,
        store: Store | None = None,
        *,
        waits: Waits = USUAL,
    ) -> None:
        self.pool = pool
        self.results = results
        self.pace = Pace(pool.kinds)
        self.jobs: dict[str, Job] = {}
        self.arriving: dict[str, Job] = {}
        """Those that are being stored; they are in the queue next."""
        self.queue = Queue(self.pace)
        self.draining = False
        self.news = News()
        self._settings = settings
        self._observer = observer
        self._store = store
        self._runner = Runner(results, self.pace, self._publish, self._settle, marked=settings.provenance)
        self._absent = Absent(pool, waits, self._publish, self.cancel)
        self._work: dict[str, Work] = {}  # by name of the lane
        self._wishes: dict[str, tuple[Entry, bool]] = {}  # by model; whether to have it in memory
        self._endings: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        pool.changed = self._wake.set

    # -- what callers do ------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Queue a job for which there was room. Raises ShuttingDown at the end of the server."""
        if self.draining:
            raise ShuttingDown(CLOSING, retry_after=5)
        self.jobs[job.id] = job
        self._enqueue(job)

    async def take_back(self, job: Job, fault: ImagegenError | None) -> None:
        """Go on with a job of an earlier run of the server, or end it, if it has not ended."""
        self.jobs[job.id] = job
        if not job.ended and (fault is not None or job.missing == job.plan.n):
            await self._settle(job, Ended(fault))
        elif not job.ended:
            self._enqueue(job)

    def check_room(self) -> None:
        """Raise what there is to say against another job, before work is put into it."""
        if self.draining:
            raise ShuttingDown(CLOSING, retry_after=5)
        if len(self.queue) + len(self.arriving) >= self._settings.max_queue:
            wait = min((eta for job in self.running if (eta := self.eta(job)) is not None), default=None)
            raise QueueFull(
                f"{len(self.queue)} jobs are waiting already, the queue is full; try again later",
                retry_after=max(1, math.ceil(wait or 5)),
            )

    def get(self, job_id: str, caller: Caller) -> Job:
        """The job of this id; to those who may not see it, it is not there."""
        job = self.jobs.get(job_id)
        if job is None or not caller.may_see(job.caller):
            raise JobNotFound(f"there is no job {job_id[:60]!r}, or it has expired")
        job.missed = False
        return job

    async def cancel(self, job: Job, reason: str | ImagegenError = "the job was cancelled") -> None:
        """End a queued job at once, a running one by ending its engine. Harmless on a finished one."""
        if job.ended:
            return
        error = Cancelled(reason) if isinstance(reason, str) else reason
        job.cancel_requested = job.cancel_requested or error
        if job in self.queue:
            self.queue.remove(job)
            ending = asyncio.create_task(self._settle(job, Ended(error)))  # whoever wants it may leave
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
        for lane in self._busy:
            if self._work[lane.name].job is job:
                await lane.kill()
        await job.wait()

    def move(self, job: Job, priority: int) -> None:
        """Let a waiting job go sooner or later; one that has begun stays as it is."""
        if job in self.queue:
            self.queue.remove(job)
            job.priority = priority
            self.queue.put_back(job)
            self.news.wake()
            self._wake.set()

    def let_before(self, job: Job, other: Job) -> list[Job]:
        """Let a waiting job go before another of its caller and priority; returns those that moved."""
        if job is other or job not in self.queue or other not in self.queue:
            return []
        moved = self.queue.let_before(job, other)
        self.news.wake()
        self._wake.set()
        return moved

    def want(self, entry: Entry) -> None:
        """Have this model loaded as soon as no job waits."""
        self.pool.forget_failure(entry)
        self._wish(entry, loaded=True)

    async def unload(self, entry: Entry) -> None:
        """Have this model unloaded as soon as no job waits; a load that no job waits for ends at once."""
        jobs = (*self.running, *self.queue)
        loading = [lane for lane in self.pool.lanes if lane.loads(entry)]
        if loading and all(job.plan.entry.name != entry.name for job in jobs):
            self._wishes.pop(entry.name, None)
            for lane in loading:
                await lane.kill()
        else:
            self._wish(entry, loaded=False)

    def _wish(self, entry: Entry, *, loaded: bool) -> None:
        """The last one about a model counts; those about several are done in their order."""
        self._wishes.pop(entry.name, None)
        self._wishes[entry.name] = entry, loaded
        self._wake.set()

    @property
    def running(self) -> list[Job]:
        """The jobs that lanes work on, the oldest first."""
        return sorted((work.job for work in self._work.values() if work.job), key=lambda job: job.created)

    def job_on(self, lane: BaseLane) -> Job | None:
        """What this lane works on."""
        work = self._work.get(lane.name)
        return work.job if work else None

    def status_of(self, lane: BaseLane) -> LaneStatus:
        """`loading` for a job, too; `paused` after crashes, unless an engine lives."""
        if lane.loading is not None:
            return "loading"
        if lane.name in self._work:
            return "running"
        return "paused" if lane.pause and not lane.ready(None) else "idle"

    @property
    def waiting(self) -> int:
        return len(self.queue)

    def position(self, job: Job) -> int | None:
        """Its place in the queue, from 1; None if it does not wait."""
        place = self.queue.place(job)
        return place.position if place else None

    def eta(self, job: Job) -> float | None:
        """Seconds until this job ends, from measured speed; None while nothing was measured.

        What comes before a waiting job is shared by all lanes.
        """
        place, own = self.queue.place(job), self.pace.job_seconds(job.plan)
        if place is None:
            return 0.0 if job.ended else self._rest(job)
        rests = [self._rest(other) for other in self.running] or [self.pool.pause]
        known = [rest for rest in rests if rest is not None]
        if len(known) < len(rests) or place.seconds is None or own is None:
            return None
        return (sum(known) + place.seconds - own) / max(1, len(self.pool.lanes)) + own

    def _rest(self, job: Job) -> float | None:
        kind = lane.device.kind if job.lane and (lane := self.pool.lane(job.lane)) else None
        return self.pace.job_seconds(job.plan, job.last_progress, len(job.images), kind)

    async def drain(self, grace: float) -> None:
        """Take no more work; let jobs finish for `grace` seconds, then cancel what is left.

        Jobs that could not begin in this time, for the pause after crashes, are not waited for.
        """
        self.draining = True
        self.news.wake()
        if not self.running and self.pool.pause > grace:
            grace = 0
        left = [job for job in self.jobs.values() if not job.ended]
        if left:
            log.info("finishing %d job(s), at most %.0f s", len(left), grace)
            await asyncio.wait([asyncio.ensure_future(job.wait()) for job in left], timeout=grace)
        await asyncio.gather(
            *(self.cancel(job, ShuttingDown(CLOSING, retry_after=5)) for job in reversed(left))
        )

    def sweep(self) -> None:
        """Forget jobs that are past their time."""
        forget_old(self.jobs, self._settings.job_ttl)

    # -- the loop -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Give idle lanes work until cancelled: next jobs, else load or unload on wish, else unload after
        the idle time.

        Only this loop gives lanes work and closes models of idle ones.
        """
        try:
            while True:
                self._wake.clear()
                await self._absent.look(self.queue)
                self._place()
                await self._grant_wishes()
                for lane in self._idle:
                    await lane.expire()
                await self._something_happens()
        finally:
            await self._end_work()
            await self.pool.close("shutdown")

    @property
    def _idle(self) -> list[BaseLane]:
        return [lane for lane in self.pool.lanes if lane.name not in self._work]

    @property
    def _busy(self) -> list[BaseLane]:
        return [lane for lane in self.pool.lanes if lane.name in self._work]

    def _place(self) -> None:
        if not self.queue or not self._idle:
            return
        rules = Rules(self._settings.swap_after, self.queue.served)
        self.pace.kinds = self.pool.kinds
        wants = self.queue.wants if self.pool.spreads else {}
        idle = {lane.name: lane for lane in self._idle}
        for each in place(self.queue.waiting, self.pool.views(self._busy, wants), time.time(), rules):
            job, lane = self.jobs[each.job.id], idle[each.lane]
            self.queue.take(job)
            self._begin(lane, self._run_job(job, lane), job)

    async def _grant_wishes(self) -> None:
        """In their order, but for those that must wait for a lane."""
        for entry, loaded in list(self._wishes.values()):
            if self.queue:
                return
            if self._wishes.get(entry.name) != (entry, loaded):
                continue  # taken back while another model was closed
            if not loaded and not any(self._uses(lane, entry) for lane in self._busy):
                self._wishes.pop(entry.name, None)
                for lane in self._idle:
                    await lane.close("idle", entry)
            elif loaded and (free := self.pool.lane_to_load(entry, self._idle)):
                self._wishes.pop(entry.name, None)
                self._begin(free, self._load(entry, free))

    def _uses(self, lane: BaseLane, entry: Entry) -> bool:
        job = self.job_on(lane)
        return (
            lane.holds(entry) or lane.loads(entry) or (job is not None and job.plan.entry.name == entry.name)
        )

    async def _something_happens(self) -> None:
        """Wait for work or an idle lane, at most until time alone changes what may be done."""
        ends = [lane.next_expiry for lane in self._idle] + [lane.pause or None for lane in self._idle]
        ends.append(self._absent.next)
        if self._idle:
            now = time.time() - self._settings.swap_after
            ends.append(next((job.since - now for job in self.queue if job.since > now), None))
        with contextlib.suppress(asyncio.TimeoutError):
            soonest = min((seconds for seconds in ends if seconds is not None), default=None)
            await asyncio.wait_for(self._wake.wait(), soonest)

    def _begin(self, lane: BaseLane, work: Coroutine[Any, Any, None], job: Job | None = None) -> None:
        self._work[lane.name] = Work(job, asyncio.create_task(work))

    def _end(self, lane: BaseLane) -> None:
        del self._work[lane.name]
        self._wake.set()

    async def _run_job(self, job: Job, lane: BaseLane) -> None:
        try:
            error = await self._runner.run(job, lane)
        except NoRoomYet as full:
            error = job.cancel_requested or full.refusal
            if not job.cancel_requested and self._may_wait(job, lane, full):
                self._end(lane)
                self._enqueue(job, again=True)
                return
        self._end(lane)
        self.pool.memory_changed()
        if isinstance(error, WorkerKilled) and job.lost < MOST_LOST - 1:
            job.lost += 1
            self._publish(job, Notice(f"{error.message} Attempt {job.lost + 1} of {MOST_LOST} follows."))
            self._enqueue(job, again=True)
        else:
            await self._settle(job, Ended(error))

    async def _load(self, entry: Entry, lane: BaseLane) -> None:
        """What somebody wished for."""
        full = await load(entry, lane, self.pace)
        waits = full is not None and self._may_fit_later(entry, lane)
        if waits:
            self._wishes.setdefault(entry.name, (entry, True))
        elif full is not None:
            log.error("model %s could not be loaded: %s", entry.id, full.refusal.message)
        self._end(lane)
        if not waits:
            self.pool.memory_changed()

    def _may_wait(self, job: Job, lane: BaseLane, full: NoRoomYet) -> bool:
        """Whether it may fit later as it is, or at once in tiles."""
        if self._may_fit_later(job.plan.entry, lane):
            return True
        if full.in_tiles:
            job.plan = job.plan.in_tiles()
            self._publish(job, Notice(IN_TILES))
            self.pool.memory_changed()
        return full.in_tiles

    def _may_fit_later(self, entry: Entry, lane: BaseLane) -> bool:
        """Whether another lane may take this model, or leave room for it at the end of its work."""
        self.pool.refuse(lane, entry)
        return len(self._work) > 1 or not self.pool.refused_everywhere(entry)

    async def _end_work(self) -> None:
        """Cancel what lanes do; again whenever `run` is cancelled again, for a cancellation may be lost."""
        while left := [work.task for work in self._work.values() if not work.task.done()]:
            for task in left:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(left)

    # -- telling --------------------------------------------------------------------------------------

    def _enqueue(self, job: Job, *, again: bool = False) -> None:
        """Put it into the queue, or back, and say so."""
        (self.queue.put_back if again else self.queue.add)(job)
        self._publish(job, Queued(self.position(job) or 0, self.eta(job)))
        self._wake.set()

    async def _settle(self, job: Job, event: JobEvent) -> None:
        """Publish what clients build on, once it is stored."""
        if self._store is not None:
            await self._store(job, event)
        self._publish(job, event)

    def _publish(self, job: Job, event: JobEvent) -> None:
        job.publish(event)
        self._observer(job, job.events[-1])
        self.news.add(job)
