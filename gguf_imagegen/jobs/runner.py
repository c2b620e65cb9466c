"""One job on one lane: load what it needs, have its pictures made, keep and publish them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from msgspec.structs import replace

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.jobs.estimates import Pace
from gguf_imagegen.jobs.finish import finish_of
from gguf_imagegen.jobs.job import ImageReady, Job, JobEvent, PreviewReady, Started
from gguf_imagegen.jobs.results import ResultStore
from gguf_imagegen.pool.base_lane import BaseLane
from gguf_imagegen.pool.failures import NoRoomYet
from gguf_imagegen.vocabulary.errors import (
    Cancelled,
    ImagegenError,
    InternalError,
    ModelLoadFailed,
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
    PictureFile,
    Preview,
    PreviewFile,
    Progress,
    TextFound,
    Timings,
)

log = logging.getLogger(__name__)

OTHER_BUILD = "this attempt runs on another build of the engine: the last bits of pixels may differ"


class Runner:
    """Runs jobs, each on the lane it is given; several may run at the same time, on lanes of their own.

    `settle` publishes an event when it is stored. Pictures that a job has already are not made again; those
    made are `marked` as a model's.
    """

    def __init__(
        self,
        results: ResultStore,
        pace: Pace,
        publish: Callable[[Job, JobEvent], None],
        settle: Callable[[Job, JobEvent], Awaitable[None]],
        *,
        marked: bool,
    ) -> None:
        self._results = results
        self._pace = pace
        self._publish = publish
        self._settle = settle
        self._marked = marked

    async def run(self, job: Job, lane: BaseLane) -> ImagegenError | None:
        """From its start to its end, which is not published yet; returns what went wrong.

        Raises `NoRoomYet` if its model does not fit while other lanes work.
        """
        if job.cancel_requested:
            return job.cancel_requested
        if job.build and lane.build and job.build != lane.build:
            self._publish(job, Notice(OTHER_BUILD))
        job.build = lane.build
        ready = lane.ready(job.plan.entry if job.plan.generate else None)
        self._publish(job, Started(lane.name))
        error = await self._try(job, lane)
        if ready and isinstance(error, WorkerCrashed) and isinstance(job.events[-1], Started):
            await lane.close("crashed", job.plan.entry)
            error = await self._try(job, lane)  # that engine had died before it heard of this job
        if job.cancel_requested:
            error = job.cancel_requested
        elif isinstance(error, WorkerCrashed):
            lane.crashes.add()
            log.error("job %s: %s", job.id, error.message)
        elif error is None:
            lane.crashes.job_succeeded()
        if job.cancel_requested or isinstance(error, Cancelled | WorkerCrashed | InternalError):
            await lane.close("cancelled" if job.cancel_requested else "crashed", job.plan.entry)
        elif isinstance(error, ModelLoadFailed):
            await lane.close("failed", job.plan.entry)
        return error

    async def _try(self, job: Job, lane: BaseLane) -> ImagegenError | None:
        """Load if need be, generate, publish; returns what went wrong."""
        try:
            await self._do(job, lane)
        except ImagegenError as exc:
            return exc
        except NoRoomYet:
            raise
        except Exception:  # the lane must outlive any defect of ours; the log has the trace
            log.exception("internal error in job %s", job.id)
            return InternalError("internal error; the server's log has the details")
        return None

    async def _do(self, job: Job, lane: BaseLane) -> None:
        if job.cancel_requested:
            raise job.cancel_requested
        if job.complete is not None:
            job.plan, job.complete = await job.complete(), None
        plan, first = job.plan, job.missing
        finish = finish_of(plan, marked=self._marked)
        if plan.generate is None:
            async with lane.without_model() as engine:
                for index, picture in enumerate(plan.pictures[first:], first):
                    await self._take_all(job, lane, lane.enlarge(engine, Made(index, picture), finish))
            return
        async with lane.loaded(plan.entry, partial(self._loading, job, lane), plan.keep_alive) as model:
            if not job.cancel_requested:
                await lane.make_room_to_decode(model, plan.generate)
                spec = replace(plan.generate, first=first)
                await self._take_all(job, lane, lane.draw(model, spec, finish))

    def _loading(self, job: Job, lane: BaseLane, event: Loading | Loaded) -> None:
        if isinstance(event, Loaded):
            self._pace.learn_load(job.plan.entry, event.seconds, lane.device.kind)
        self._publish(job, event)

    async def _take_all(self, job: Job, lane: BaseLane, events: AsyncIterator[EngineEvent]) -> None:
        async for event in events:
            match event:
                case PreviewFile(index=index, step=step, steps=steps, data=data):
                    self._publish(job, PreviewReady(index, step, steps, data))
                case PictureFile(index=index, data=data, timings=timings):
                    self._pace.learn(job.plan, timings, lane.device.kind)
                    await self._keep_file(job, index, data, timings)
                case PhaseChanged() | Progress() | Notice() | Loading():
                    self._publish(job, event)
                case Preview() | Made() | Loaded() | TextFound() | Failed() | Done():
                    pass

    async def _keep_file(self, job: Job, index: int, data: bytes, timings: Timings) -> None:
        plan, seed = job.plan, job.plan.seed(index)
        name, on_disk = await asyncio.to_thread(
            self._results.put, data, plan.output_format, job.caller, job.names[index]
        )
        if not on_disk:
            self._publish(job, Notice("the image could not be written to the result folder; download it now"))
        await self._settle(job, ImageReady(index, seed, name, *plan.delivered, timings))


async def load(entry: Entry, lane: BaseLane, pace: Pace) -> NoRoomYet | None:
    """Load a model that no job waits for; what fails is logged, but for want of room."""

    def learn(event: Loading | Loaded) -> None:
        if isinstance(event, Loaded):
            pace.learn_load(entry, event.seconds, lane.device.kind)

    try:
        async with lane.loaded(entry, learn):
            pass
    except Cancelled:
        await lane.close("cancelled", entry)
    except NoRoomYet as full:
        return full
    except ImagegenError as exc:
        log.error("model %s could not be loaded: %s", entry.id, exc.message)
        await lane.close("failed", entry)
    except Exception:  # as in `Runner`
        log.exception("internal error while loading %s", entry.id)
        await lane.close("failed", entry)
    return None
