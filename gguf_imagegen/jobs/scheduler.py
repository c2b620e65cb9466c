"""The scheduler: jobs from the queue onto the lane, one at a time, and what callers may ask of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from itertools import islice
from typing import Protocol

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.jobs.estimates import Pace
from gguf_imagegen.jobs.finish import encode_image, finish_pixels, finish_preview
from gguf_imagegen.jobs.job import Ended, ImageReady, Job, JobEvent, PreviewReady, Queued, Started
from gguf_imagegen.jobs.queue import Queue
from gguf_imagegen.jobs.results import ResultStore
from gguf_imagegen.planning.plan import Plan
from gguf_imagegen.pool.lane import Lane
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Engine, Upscale
from gguf_imagegen.vocabulary.errors import (
    Cancelled,
    EnginePaused,
    ImagegenError,
    InternalError,
    JobNotFound,
    ModelLoadFailed,
    QueueFull,
    ShuttingDown,
    WorkerCrashed,
)
from gguf_imagegen.vocabulary.events import (
    Done,
    EngineEvent,
    Failed,
    Loaded,
    Loading,
    Made,
    Notice,
    PhaseChanged,
    Preview,
    Progress,
    Timings,
)

log = logging.getLogger(__name__)

PREVIEW_TTL = 60.0
"""Seconds after a job's end for which its previews can be replayed."""
MAX_ENDED = 1000
"""Ended jobs that can be looked at; beyond, the oldest are forgotten before their time."""
REMEMBERED = 1000
"""Latest events by which a follower finds what has changed; one that is further behind looks at all jobs."""


class Observer(Protocol):
    """Sees every event of every job after it was published."""

    def __call__(self, job: Job, event: JobEvent) -> None: ...


class Scheduler:
    """Owns all jobs; `run()` is the only place that makes the engine work."""

    def __init__(self, settings: Settings, lane: Lane, results: ResultStore, observer: Observer) -> None:
        self.lane = lane
        self.results = results
        self.pace = Pace()
        self.jobs: dict[str, Job] = {}
        self.queue = Queue(self.pace)
        self.running: Job | None = None
        self.draining = False
        self.told = 0
        """How many events of all jobs together there were."""
        self._settings = settings
        self._observer = observer
        self._latest: deque[Job] = deque(maxlen=REMEMBERED)
        self._wishes: dict[str, tuple[Entry, bool]] = {}  # by model; whether to have it in memory
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()

    # -- what callers do ------------------------------------------------------------------------------

    def submit(self, plan: Plan) -> Job:
        """Queue a job; QueueFull says when to come back."""
        self.check_room()
        self.check_engine(plan.entry if plan.generate else None)
        job = Job(plan)
        self.jobs[job.id] = job
        self.queue.add(job)
        self._publish(job, Queued(self.position(job) or 0, self.eta(job)))
        self._wake.set()
        return job

    def check_room(self) -> None:
        """Raise what `submit` would raise, before work is put into a request."""
        if self.draining:
            raise ShuttingDown("the server is shutting down; try again in a moment", retry_after=5)
        if len(self.queue) >= self._settings.max_queue:
            wait = self.eta(self.running) if self.running else None
            raise QueueFull(
                f"{len(self.queue)} jobs are waiting already, the queue is full; try again later",
                retry_after=max(1, math.ceil(wait or 5)),
            )

    def check_engine(self, entry: Entry | None) -> None:
        """Raise what `submit` would raise of a job for this model, None for work without one."""
        wait = math.ceil(self.lane.pause)
        if wait and not self.lane.ready(entry):
            raise EnginePaused(
                f"the engine crashed again and again; it is given a pause, try again in {wait} s",
                retry_after=wait,
            )

    def get(self, job_id: str) -> Job:
        try:
            return self.jobs[job_id]
        except KeyError:
            raise JobNotFound(f"there is no job {job_id[:60]!r}, or it has expired") from None

    async def cancel(self, job: Job, reason: str = "the job was cancelled") -> None:
        """End a queued job at once, a running one by ending its engine. Harmless on a finished one."""
        if job.ended:
            return
        if job in self.queue:
            self.queue.remove(job)
            self._publish(job, Ended(Cancelled(reason)))
            return
        job.cancel_requested = reason
        if job is self.running:
            await self.lane.kill()
        await job.wait()

    def want(self, entry: Entry) -> None:
        """Have this model loaded as soon as no job waits."""
        self.lane.forget_failure(entry)
        self._wish(entry, loaded=True)

    async def unload(self, entry: Entry) -> None:
        """Have this model unloaded as soon as no job waits; a load that no job waits for ends at once."""
        jobs = (job for job in (self.running, *self.queue) if job is not None)
        if self.lane.loads(entry) and all(job.plan.entry.name != entry.name for job in jobs):
            self._wishes.pop(entry.name, None)
            await self.lane.kill()
        else:
            self._wish(entry, loaded=False)

    def _wish(self, entry: Entry, *, loaded: bool) -> None:
        """The last one about a model counts; those about several are done in their order."""
        self._wishes.pop(entry.name, None)
        self._wishes[entry.name] = entry, loaded
        self._wake.set()

    def changed_since(self, told: int) -> list[Job]:
        """The jobs that had events since there were `told` of them; perhaps more than these."""
        new = self.told - told
        if new > len(self._latest):
            return list(self.jobs.values())
        return list(dict.fromkeys(islice(self._latest, len(self._latest) - new, None)))

    async def change(self, timeout: float) -> None:
        """Wait until something happens to any job, at most `timeout` seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout)

    @property
    def waiting(self) -> int:
        return len(self.queue)

    def position(self, job: Job) -> int | None:
        """Its place in the queue, from 1; None if it does not wait."""
        place = self.queue.place(job)
        return place.position if place else None

    def eta(self, job: Job) -> float | None:
        """Seconds until this job ends, from measured speed; None while nothing was measured."""
        if job is self.running:
            return self.pace.job_seconds(job.plan, job.last_progress, len(job.images))
        place = self.queue.place(job)
        if place is None:
            return 0.0
        before = self.eta(self.running) if self.running else self.lane.pause
        return None if before is None or place.seconds is None else before + place.seconds

    async def drain(self, grace: float) -> None:
        """Take no more work; let jobs finish for `grace` seconds, then cancel what is left.

        Jobs that could not begin in this time, for the pause after crashes, are not waited for.
        """
        self.draining = True
        self._tell_change()
        if self.running is None and self.lane.pause > grace:
            grace = 0
        left = [job for job in self.jobs.values() if not job.ended]
        if left:
            log.info("finishing %d job(s), at most %.0f s", len(left), grace)
            await asyncio.wait([asyncio.ensure_future(job.wait()) for job in left], timeout=grace)
        for job in reversed(left):
            await self.cancel(job, "the server is shutting down")

    def sweep(self) -> None:
        """Forget jobs and images that are past their time."""
        now = time.time()
        ended = [job for job in self.jobs.values() if job.ended]
        for newer, job in enumerate(reversed(ended)):
            age = now - job.times[-1]
            if age > self._settings.job_ttl or newer >= MAX_ENDED:
                del self.jobs[job.id]
            elif age > PREVIEW_TTL:
                job.drop_previews()
        self.results.sweep()

    # -- the loop -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled: next job, else load or unload on wish, else unload after the idle time.

        In the pause after crashes jobs and wishes wait, but for jobs whose model has an engine that lives.
        """
        try:
            while True:
                pause = self.lane.pause
                if job := self._take_next(paused=pause > 0):
                    await self._run_job(job)
                elif self._wishes and not pause:
                    await self._grant(*self._wishes.pop(next(iter(self._wishes))))
                else:
                    await self._work_arrives(pause)
                    await self.lane.expire()
        finally:
            await self.lane.close("shutdown")

    def _take_next(self, *, paused: bool) -> Job | None:
        """The oldest job; while it has not waited `swap_after`, one that needs no load goes before it.

        None if there is none, or if all need one and no engine may be started.
        """
        job = next(iter(self.queue), None)
        if job and (paused or time.time() - job.created < self._settings.swap_after):
            job = next(filter(self._ready, self.queue), None if paused else job)
        if job:
            self.queue.remove(job)
        return job

    def _ready(self, job: Job) -> bool:
        return self.lane.ready(job.plan.entry if job.plan.generate else None)

    async def _work_arrives(self, pause: float) -> None:
        """Wait for work, at most until a model has been idle for its time, or the pause is over."""
        self._wake.clear()
        ends = [seconds for seconds in (self.lane.next_expiry, pause or None) if seconds is not None]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), min(ends, default=None))

    async def _grant(self, entry: Entry, loaded: bool) -> None:
        if not loaded:
            await self.lane.close("idle", entry)
            return
        try:
            async with self.lane.loaded(entry, lambda event: None):
                pass
        except Cancelled:
            await self.lane.close("cancelled", entry)
        except ImagegenError as exc:
            log.error("model %s could not be loaded: %s", entry.id, exc.message)
            await self.lane.close("failed", entry)
        except Exception:  # as in `_try_job`
            log.exception("internal error while loading %s", entry.id)
            await self.lane.close("failed", entry)

    async def _run_job(self, job: Job) -> None:
        self.running, ready = job, self._ready(job)
        self._publish(job, Started())
        error = await self._try_job(job)
        if ready and isinstance(error, WorkerCrashed) and isinstance(job.events[-1], Started):
            await self.lane.close("crashed", job.plan.entry)
            error = await self._try_job(job)  # that engine had died before it heard of this job
        if job.cancel_requested:
            error = Cancelled(job.cancel_requested)
        elif isinstance(error, WorkerCrashed):
            self.lane.crashed()
            log.error("job %s: %s", job.id, error.message)
        elif error is None:
            self.lane.succeeded()
        if isinstance(error, Cancelled | WorkerCrashed | InternalError):
            await self.lane.close("cancelled" if job.cancel_requested else "crashed", job.plan.entry)
        elif isinstance(error, ModelLoadFailed):
            await self.lane.close("failed", job.plan.entry)
        self.running = None
        self._publish(job, Ended(error))

    async def _try_job(self, job: Job) -> ImagegenError | None:
        """Load if need be, generate, publish; returns what went wrong."""
        try:
            await self._do(job)
        except ImagegenError as exc:
            return exc
        except Exception:  # the loop must outlive any defect of ours; the log has the trace
            log.exception("internal error in job %s", job.id)
            return InternalError("internal error; the server's log has the details")
        return None

    async def _do(self, job: Job) -> None:
        if job.plan.generate is None:
            async with self.lane.without_model() as engine:
                for index, picture in enumerate(job.plan.pictures):
                    await self._upscale(job, engine, index, picture, Timings())
            return
        made: list[tuple[RawImage, Timings]] = []
        async with self.lane.loaded(
            job.plan.entry, lambda event: self._publish(job, event), job.plan.keep_alive
        ) as model:
            if not job.cancel_requested:
                async for event in model.engine.run(await self.lane.fitted(model, job.plan.generate)):
                    await self._take(job, event, made)
            for index, (picture, timings) in enumerate(made):
                await self._upscale(job, model.engine, index, picture, timings)

    async def _upscale(
        self, job: Job, engine: Engine, index: int, picture: RawImage, timings: Timings
    ) -> None:
        assert job.plan.upscale is not None
        spec = Upscale(job.plan.upscale.path, picture, index, self.lane.threads)
        async for event in engine.run(spec):
            match event:
                case Made():
                    await self._keep_image(job, index, event.artifact, timings)
                case PhaseChanged() | Progress() | Loading():
                    self._publish(job, event)

    async def _take(self, job: Job, event: EngineEvent, made: list[tuple[RawImage, Timings]]) -> None:
        match event:
            case Preview():
                data = await asyncio.to_thread(finish_preview, job.plan, event)
                self._publish(job, PreviewReady(event.index, event.step, event.steps, data))
            case Made(index=index, artifact=artifact, timings=timings):
                self.pace.learn(job.plan, timings)
                picture = await asyncio.to_thread(finish_pixels, job.plan, artifact)
                if job.plan.upscale is None:
                    await self._keep_image(job, index, picture, timings)
                else:
                    made.append((picture, timings))
            case PhaseChanged() | Progress() | Notice() | Loading():
                self._publish(job, event)
            case Loaded() | Failed() | Done():
                pass

    async def _keep_image(self, job: Job, index: int, picture: RawImage, timings: Timings) -> None:
        plan, seed = job.plan, job.plan.seed(index)
        data = await asyncio.to_thread(encode_image, plan, picture, seed)
        name, on_disk = await asyncio.to_thread(self.results.put, data, plan.output_format)
        if not on_disk:
            self._publish(job, Notice("the image could not be written to the result folder; download it now"))
        self._publish(job, ImageReady(index, seed, name, *plan.delivered, timings))

    # -- telling --------------------------------------------------------------------------------------

    def _publish(self, job: Job, event: JobEvent) -> None:
        job.publish(event)
        self._observer(job, job.events[-1])
        self._latest.append(job)
        self.told += 1
        self._tell_change()

    def _tell_change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
