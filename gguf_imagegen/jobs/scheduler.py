"""The queue: one job at a time on the resident model, loaded on demand and unloaded when idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from typing import Protocol

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.engine.protocol import Engine, RawImage, UpscaleSpec
from gguf_imagegen.errors import (
    Cancelled,
    ImagegenError,
    InternalError,
    JobNotFound,
    ModelLoadFailed,
    QueueFull,
    ShuttingDown,
    WorkerCrashed,
)
from gguf_imagegen.events import (
    Done,
    EngineEvent,
    Failed,
    ImageMade,
    Loaded,
    Loading,
    Notice,
    PhaseChanged,
    Preview,
    Progress,
    Timings,
    Upscaled,
)
from gguf_imagegen.jobs.finish import encode_image, finish_pixels, finish_preview
from gguf_imagegen.jobs.job import Ended, ImageReady, Job, JobEvent, PreviewReady, Queued, Started
from gguf_imagegen.jobs.pace import Pace
from gguf_imagegen.jobs.plan import Plan
from gguf_imagegen.jobs.resident import Resident
from gguf_imagegen.jobs.results import ResultStore
from gguf_imagegen.settings import Settings

log = logging.getLogger(__name__)

NO_TIMINGS = Timings(0.0, 0.0, 0.0, 0.0, 0)
PREVIEW_TTL = 60.0
"""Seconds after a job's end for which its previews can be replayed."""
MAX_ENDED = 1000
"""Ended jobs that can be looked at; beyond, the oldest are forgotten before their time."""


class Observer(Protocol):
    """Sees every event of every job after it was published."""

    def __call__(self, job: Job, event: JobEvent) -> None: ...


class Scheduler:
    """Owns all jobs; `run()` is the only place that makes the engine work."""

    def __init__(
        self, settings: Settings, resident: Resident, results: ResultStore, observer: Observer
    ) -> None:
        self.resident = resident
        self.results = results
        self.pace = Pace()
        self.jobs: dict[str, Job] = {}
        self.running: Job | None = None
        self.draining = False
        self._settings = settings
        self._observer = observer
        self._waiting: deque[Job] = deque()
        self._wanted: Entry | None = None
        self._unwanted: list[Entry] = []
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()

    # -- what callers do ------------------------------------------------------------------------------

    def submit(self, plan: Plan) -> Job:
        """Queue a job; QueueFull says when to come back."""
        self.check_room()
        job = Job(plan)
        self.jobs[job.id] = job
        self._waiting.append(job)
        self._publish_positions(job)
        self._wake.set()
        return job

    def check_room(self) -> None:
        """Raise what `submit` would raise, before work is put into a request."""
        if self.draining:
            raise ShuttingDown("the server is shutting down; try again in a moment", retry_after=5)
        if len(self._waiting) >= self._settings.max_queue:
            wait = self.eta(self.running) if self.running else None
            raise QueueFull(
                f"{len(self._waiting)} jobs are waiting already, the queue is full; try again later",
                retry_after=max(1, math.ceil(wait or 5)),
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
        if job in self._waiting:
            self._waiting.remove(job)
            self._publish(job, Ended(Cancelled(reason)))
            self._publish_positions()
            return
        job.cancel_requested = reason
        if job is self.running:
            await self.resident.kill()
        await job.wait()

    def want(self, entry: Entry) -> None:
        """Have this model loaded as soon as no job waits."""
        self.resident.forget_failure(entry)
        self._unwanted = [other for other in self._unwanted if other.name != entry.name]
        self._wanted = entry
        self._wake.set()

    async def unload(self, entry: Entry) -> None:
        """Have this model unloaded as soon as no job waits; a load that no job waits for ends at once."""
        if self._wanted is not None and self._wanted.name == entry.name:
            self._wanted = None
        loads = self.resident.loads(entry)
        jobs = (job for job in (self.running, *self._waiting) if job is not None)
        if loads and all(job.plan.entry.name != entry.name for job in jobs):
            await self.resident.kill()
        elif loads or self.resident.holds(entry):
            self._unwanted.append(entry)
            self._wake.set()

    async def change(self, timeout: float) -> None:
        """Wait until something happens to any job, at most `timeout` seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def eta(self, job: Job) -> float | None:
        """Seconds until this job ends, from measured speed; None while nothing was measured."""
        if job is self.running:
            return self.pace.job_seconds(job.plan, job.last_progress, len(job.images))
        if job.ended:
            return 0.0
        ahead = [self.running] if self.running else []
        ahead += list(self._waiting)[: self._waiting.index(job)]
        total = self.pace.job_seconds(job.plan)
        for other in ahead:
            seconds = self.pace.job_seconds(other.plan, other.last_progress, len(other.images))
            if total is None or seconds is None:
                return None
            total += seconds
        return total

    async def drain(self, grace: float) -> None:
        """Take no more work; let jobs finish for `grace` seconds, then cancel what is left."""
        self.draining = True
        self._tell_change()
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
        """Work until cancelled: next job, else load or unload on wish, else unload after the idle time."""
        try:
            while True:
                if self._waiting:
                    await self._run_job(self._take_next())
                elif self._wanted is not None:
                    entry, self._wanted = self._wanted, None
                    await self._preload(entry)
                elif self._unwanted:
                    await self.resident.close("idle", self._unwanted.pop())
                else:
                    await self._work_arrives()
                    await self.resident.expire()
        finally:
            await self.resident.close("shutdown")

    def _take_next(self) -> Job:
        """The oldest job; while it has not waited `swap_after`, one whose model is loaded goes before it."""
        oldest = self._waiting[0]
        patient = time.time() - oldest.times[0] < self._settings.swap_after
        ready = (job for job in self._waiting if self.resident.holds(job.plan.entry))
        job = next(ready, oldest) if patient else oldest
        self._waiting.remove(job)
        return job

    async def _work_arrives(self) -> None:
        """Wait for work, at most until a model has been idle for its time."""
        self._wake.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), self.resident.next_expiry)

    async def _preload(self, entry: Entry) -> None:
        try:
            await self.resident.engine_for(entry, lambda event: None)
        except Cancelled:
            await self.resident.close("cancelled", entry)
        except ImagegenError as exc:
            log.error("model %s could not be loaded: %s", entry.id, exc)
            await self.resident.close("failed", entry)
        except Exception:  # as in `_try_job`
            log.exception("internal error while loading %s", entry.id)
            await self.resident.close("failed", entry)

    async def _run_job(self, job: Job) -> None:
        self.running = job
        self._publish(job, Started())
        self._publish_positions()
        error = await self._try_job(job)
        if job.cancel_requested:
            error = Cancelled(job.cancel_requested)
        elif isinstance(error, WorkerCrashed):
            self.resident.crashed()
            log.error("job %s: %s", job.id, error)
        elif error is None:
            self.resident.succeeded()
        if isinstance(error, Cancelled | WorkerCrashed | InternalError):
            await self.resident.close("cancelled" if job.cancel_requested else "crashed", job.plan.entry)
        elif isinstance(error, ModelLoadFailed):
            await self.resident.close("failed", job.plan.entry)
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
        plan = job.plan
        if plan.pictures:
            async with self.resident.engine_without_model() as engine:
                for index, picture in enumerate(plan.pictures):
                    await self._upscale(job, engine, index, picture, NO_TIMINGS)
            return
        engine = await self.resident.engine_for(
            plan.entry, lambda event: self._publish(job, event), plan.keep_alive
        )
        made: list[tuple[RawImage, Timings]] = []
        if not job.cancel_requested:
            async for event in engine.generate(await self.resident.fitted(plan.spec)):
                await self._take(job, event, made)
        for index, (picture, timings) in enumerate(made):
            await self._upscale(job, engine, index, picture, timings)

    async def _upscale(
        self, job: Job, engine: Engine, index: int, picture: RawImage, timings: Timings
    ) -> None:
        assert job.plan.upscale is not None
        spec = UpscaleSpec(job.plan.upscale.path, picture, index, self.resident.threads)
        async for event in engine.upscale(spec):
            match event:
                case Upscaled():
                    larger = RawImage(event.width, event.height, 3, event.rgb)
                    await self._keep_image(job, index, larger, timings)
                case PhaseChanged() | Progress() | Loading():
                    self._publish(job, event)

    async def _take(self, job: Job, event: EngineEvent, made: list[tuple[RawImage, Timings]]) -> None:
        match event:
            case Preview():
                data = await asyncio.to_thread(finish_preview, job.plan, event)
                self._publish(job, PreviewReady(event.index, event.step, event.steps, data))
            case ImageMade():
                self.pace.learn(job.plan, event.timings)
                picture = await asyncio.to_thread(finish_pixels, job.plan, event)
                if job.plan.upscale is None:
                    await self._keep_image(job, event.index, picture, event.timings)
                else:
                    made.append((picture, event.timings))
            case PhaseChanged() | Progress() | Notice() | Loading():
                self._publish(job, event)
            case Loaded() | Failed() | Done() | Upscaled():
                pass

    async def _keep_image(self, job: Job, index: int, picture: RawImage, timings: Timings) -> None:
        plan, seed = job.plan, job.plan.spec.seed + index
        data = await asyncio.to_thread(encode_image, plan, picture, seed)
        name, on_disk = await asyncio.to_thread(self.results.put, data, plan.output_format)
        if not on_disk:
            self._publish(job, Notice("the image could not be written to the result folder; download it now"))
        self._publish(job, ImageReady(index, seed, name, *plan.delivered, timings))

    # -- telling --------------------------------------------------------------------------------------

    def _publish(self, job: Job, event: JobEvent) -> None:
        job.publish(event)
        self._observer(job, event)
        self._tell_change()

    def _tell_change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _publish_positions(self, only: Job | None = None) -> None:
        for position, job in enumerate(self._waiting, start=1):
            if only is None or job is only:
                self._publish(job, Queued(position, self.eta(job)))
